"""Tune what pruning left: a scale for each output of linears and norms, and biases.

Retraining a thousandth of the parameters wins back much of what a cut costs (Zimmer et al. 2023,
PERP, arXiv 2312.15230). What is fitted here are the dense model's own predictions on the
calibration samples (Hinton et al. 2015, arXiv 1503.02531), so the model is brought back to itself
and not to the calibration text. Scales are folded into the weights: nothing is added, zeros stay
zeros.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm import tqdm

from ..core.classes import kind_of
from ..core.data import Batch
from ..core.errors import ExciseError, finer
from ..core.families import ModelView
from ..core.frozen import frozen


RATE = 0.01
"""First step size, relative to the scales; falls to 0 in equal steps."""


def predictions(view: ModelView, batches: Sequence[Batch]) -> list[Tensor]:
    """Return what the model's head reads, (batch, seq, width) for each batch, on the CPU."""
    with torch.no_grad():
        return [_hidden(view, batch).cpu() for batch in batches]


def tune(
    view: ModelView,
    batches: Sequence[Batch],
    targets: Sequence[Tensor],
    epochs: int,
    *,
    rate: float = RATE,
    progress: bool = False,
) -> list[float]:
    """Fit scales and biases to a model's former predictions, in place.

    Scales begin at 1, and shifts of biases count in units of their root mean square.
    Minimises the Kullback-Leibler divergence from the former to the present distribution of every
    next token, with Adam, one step per batch.

    Args:
        view: The pruned model.
        batches: Calibration samples; a step is taken after each.
        targets: What `predictions` gave on them before the model was pruned.
        epochs: Passes over the samples.
        rate: First step size.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        Mean divergence per token in each epoch, in nats.

    Raises:
        ExciseError: Half precision was too narrow for it. The model is as it was before.
    """
    losses: list[float] = []
    if not epochs:
        return losses
    steps = epochs * len(batches)
    with frozen(view), _scaled(view) as outputs:
        parameters = [tensor for output in outputs for tensor in output.parameters]
        optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95))
        with tqdm(total=steps, desc="tuning", disable=None if progress else True) as bar:
            for epoch in range(epochs):
                parts = []
                for at, (batch, target) in enumerate(zip(batches, targets, strict=True)):
                    done = epoch * len(batches) + at
                    optimiser.param_groups[0]["lr"] = rate * (1 - done / steps)
                    loss = _divergence(view, batch, target)
                    loss.backward()
                    optimiser.step()
                    optimiser.zero_grad()
                    parts.append(loss.item())
                    bar.update()
                losses.append(sum(parts) / len(parts))
        if not all(bool(tensor.isfinite().all()) for tensor in parameters):
            raise ExciseError(
                "tuning left no finite numbers: --tune 0 leaves it out, or "
                f"{finer(view.embedding.weight.dtype)}"
            )
        with torch.no_grad():
            for output in outputs:
                output.fold()
    return losses


def _hidden(view: ModelView, batch: Batch) -> Tensor:
    batch = batch.to(view.embedding.weight.device)
    body = view.model.get_submodule(view.family.body)
    return body(**batch.model_inputs(view.family.passes_position_ids)).last_hidden_state


def _divergence(view: ModelView, batch: Batch, target: Tensor) -> Tensor:
    head = view.model.get_output_embeddings()
    mask = batch.attention_mask.bool()
    now = head(_hidden(view, batch)[mask]).float().log_softmax(-1)
    with torch.no_grad():
        then = head(target[mask].to(now.device, head.weight.dtype)).float().log_softmax(-1)
    return kl_div(now, then, log_target=True, reduction="batchmean")


class _Output:
    """The output of a linear or a norm, scaled, and shifted where there is a bias: in float32."""

    def __init__(self, module: Any):
        self.module = module
        self.scale = torch.ones(len(module.weight), device=module.weight.device).requires_grad_()
        self.parameters = [self.scale]
        self.shift: Tensor | None = None
        if getattr(module, "bias", None) is not None:
            self.shift = torch.zeros_like(self.scale).requires_grad_()
            self.parameters.append(self.shift)
            self.unit = module.bias.float().square().mean().sqrt().clamp_min(1e-3)

    def __call__(self, _module: Any, _args: Any, output: Tensor) -> Tensor:
        scaled = output * self.scale.to(output.dtype)
        return scaled if self.shift is None else scaled + (self.unit * self.shift).to(output.dtype)

    def fold(self) -> None:
        """Put scale and shift into weight and bias."""
        weight, bias = self.module.weight, getattr(self.module, "bias", None)
        if kind_of(self.module) == "rms_norm_plus_one":  # scales by 1 + weight
            weight.copy_((1 + weight.float()) * self.scale - 1)
        else:
            weight.copy_(weight * (self.scale[:, None] if weight.ndim == 2 else self.scale))
        if bias is not None and self.shift is not None:
            bias.copy_(bias * self.scale + self.unit * self.shift)


@contextmanager
def _scaled(view: ModelView) -> Iterator[list[_Output]]:
    """Scale outputs of linears and norms for a while."""
    norms = view.modules("rms_norm", "rms_norm_plus_one", "layer_norm")
    modules: list[Any] = [*view.layer_linears().values(), *(norm for _, norm in norms)]
    outputs = [_Output(module) for module in modules if module.weight is not None]
    handles = [output.module.register_forward_hook(output) for output in outputs]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
