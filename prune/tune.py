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
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm import tqdm

from ..core.data import Batch
from ..core.families import ModelView, kind_of
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

    Minimises the Kullback-Leibler divergence from the former to the present distribution of every
    next token, with Adam, one step per batch.

    Args:
        view: The pruned model.
        batches: Calibration samples.
        targets: What `predictions` gave on them before the model was pruned.
        epochs: Passes over the samples.
        rate: First step size.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        Mean divergence per token in each epoch, in nats.
    """
    losses: list[float] = []
    if not epochs:
        return losses
    with frozen(view), _scaled(view) as parameters:
        optimiser = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.95))
        total = epochs * len(batches)
        bar = tqdm(total=total, desc="tuning", unit="step", disable=None if progress else True)
        with bar:
            for epoch in range(epochs):
                parts = []
                for at, (batch, target) in enumerate(zip(batches, targets, strict=True)):
                    done = epoch * len(batches) + at
                    optimiser.param_groups[0]["lr"] = rate * (1 - done / total)
                    loss = _divergence(view, batch, target)
                    loss.backward()
                    optimiser.step()
                    optimiser.zero_grad()
                    parts.append(loss.item())
                    bar.update()
                losses.append(sum(parts) / len(parts))
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


@contextmanager
def _scaled(view: ModelView) -> Iterator[list[nn.Parameter]]:
    """Scale outputs of linears and norms for a while, then fold the scales into their weights."""
    scales: dict[Any, nn.Parameter] = {}
    biases: list[nn.Parameter] = []
    handles = []
    modules: dict[str, Any] = {**view.layer_linears()}
    modules |= dict(view.modules("rms_norm", "rms_norm_plus_one", "layer_norm"))
    for module in modules.values():
        width = module.weight.shape[0]
        scales[module] = nn.Parameter(torch.ones(width, device=module.weight.device))
        if (bias := getattr(module, "bias", None)) is not None:
            biases.append(bias.requires_grad_())

        def scale(module: Any, _args: Any, output: Tensor) -> Tensor:
            return output * scales[module].to(output.dtype)

        handles.append(module.register_forward_hook(scale))
    try:
        yield [*scales.values(), *biases]
    finally:
        for handle in handles:
            handle.remove()
        for bias in biases:
            bias.requires_grad_(False)
        with torch.no_grad():
            for module, factors in scales.items():
                _fold(module, factors)


def _fold(module: Any, scale: Tensor) -> None:
    if kind_of(module) == "rms_norm_plus_one":  # scales by 1 + weight
        module.weight.copy_((1 + module.weight) * scale - 1)
        return
    module.weight.mul_(scale[:, None] if module.weight.ndim == 2 else scale)
    if getattr(module, "bias", None) is not None:
        module.bias.mul_(scale)
