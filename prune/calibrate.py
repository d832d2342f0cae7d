"""Calibration of the whole model at once: what gradients and relevance say of every weight."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.data import Sample, batches
from ..core.families import ModelView
from ..lrp.fitter import RelevanceFitter
from ..lrp.methods import Aggregate
from .layers import observed
from .statistics import LinearFitter, LinearStatistics


@dataclass(frozen=True)
class Pass:
    """One backward pass over the calibration set."""

    method: str
    """Of `excise.lrp.methods.METHODS`."""
    aggregate: Aggregate


PASSES: dict[str, Pass] = {
    "gradient": Pass("gradient-x-activation", "signed"),
    "fisher": Pass("gradient-x-activation", "square"),
    "lrp_signed": Pass("lrp", "signed"),
    "lrp_abs": Pass("lrp", "abs"),
    "lrp_square": Pass("lrp", "square"),
}
"""Fields of `LinearStatistics` that need gradients, and the pass that gathers each."""
_WITH_WEIGHT = ("lrp_signed", "lrp_abs")
"""Fields that hold the relevance of weights itself, the weight included."""
_TARGET = "next-tokens"
"""The log-probability of every next token: the seed that compression needs."""


@dataclass
class Survey:
    """What one look at the whole model, as it is now, says of each linear."""

    statistics: dict[str, LinearStatistics]
    """By path; without gram matrices."""
    token_weights: dict[str, list[Tensor]] = field(default_factory=dict)
    """By path, per batch (batch, seq): `||g_t||^2` of the relevance at the layer's output."""


def survey(
    view: ModelView,
    samples: Sequence[Sample],
    needs: Collection[str],
    *,
    batch_size: int = 4,
    weigh_tokens: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> Survey:
    """Gather statistics of every linear of the decoder layers.

    Gradients are of the log-probability of every next token (with the relevance rules for the
    fields of LRP), one backward pass over all samples per field.

    Args:
        view: The model, held still meanwhile.
        samples: Calibration samples.
        needs: Fields of `LinearStatistics`; those of `PASSES`, and those of inputs.
        batch_size: Samples per pass.
        weigh_tokens: Whether to keep each token's relevance at each linear.
        seed: Handed on to the criterion `random`.
        progress: Whether to draw progress bars on a terminal.

    Raises:
        ExciseError: As `RelevanceFitter`.
    """
    linears = view.layer_linears()
    fitters = {
        path: LinearFitter(linear.in_features, gram=False, name=path, device=linear.weight.device)
        for path, linear in linears.items()
    }
    fields = {name: PASSES[name] for name in PASSES if name in needs}
    if weigh_tokens or "lrp_input_square" in needs:
        fields["lrp_square"] = PASSES["lrp_square"]
    found: dict[str, dict[str, Tensor]] = {path: {} for path in linears}
    weights: dict[str, list[Tensor]] = {}
    wants_inputs = "input_square" in needs
    for name, gathered in fields.items():
        kept = weights if weigh_tokens and name == "lrp_square" else None
        sums = _backward(view, linears, samples, gathered, batch_size, kept, progress)
        for path, total in sums.items():
            if name in _WITH_WEIGHT:
                weight = linears[path].weight.detach().to(total)
                total = total.mul_(weight if name == "lrp_signed" else weight.abs())
            found[path][name] = total
            if name == "lrp_square" and "lrp_input_square" in needs:
                found[path]["lrp_input_square"] = total.sum(0)  # tokens weighed by ||g_t||^2
    if wants_inputs:
        _forward(view, fitters, samples, batch_size, progress)
    tokens = sum(len(sample.input_ids) for sample in samples)
    statistics = {}
    for path, fields_found in found.items():
        inputs = vars(fitters[path].result()) if wants_inputs else {"name": path, "tokens": tokens}
        statistics[path] = LinearStatistics(**{**inputs, **fields_found, "seed": seed})
    return Survey(statistics, weights)


def _backward(
    view: ModelView,
    linears: Mapping[str, nn.Linear],
    samples: Sequence[Sample],
    gathered: Pass,
    batch_size: int,
    weights: dict[str, list[Tensor]] | None,
    progress: bool,
) -> dict[str, Tensor]:
    fitter = RelevanceFitter(
        view.model, _TARGET, gathered.method, (), tuple(linears), gathered.aggregate
    )
    taps = nullcontext() if weights is None else _token_energy(linears, weights)
    with taps:
        for batch in _shown(samples, batch_size, f"gradients ({gathered.method})", progress):
            fitter.update(batch)
    return fitter.weight_sums()


def _forward(
    view: ModelView,
    fitters: Mapping[str, LinearFitter],
    samples: Sequence[Sample],
    batch_size: int,
    progress: bool,
) -> None:
    """Run the model without gradients and show each linear's inputs to its fitter."""
    linears = view.layer_linears()
    by_module: dict[nn.Module, LinearFitter] = {
        linear: fitters[path] for path, linear in linears.items()
    }
    for batch in _shown(samples, batch_size, "activations", progress):
        batch = batch.to(view.embedding.weight.device)
        mask = batch.attention_mask.bool()

        def see(linear: nn.Module, x: Tensor, mask: Tensor = mask) -> None:
            by_module[linear].update(x.view(*mask.shape, -1), mask)

        body = view.model.get_submodule(view.family.body)
        with observed(list(linears.values()), see), torch.no_grad():
            body(**batch.model_inputs(view.family.passes_position_ids))


@contextmanager
def _token_energy(
    linears: Mapping[str, nn.Linear], found: dict[str, list[Tensor]]
) -> Iterator[None]:
    """Note the squared size of the gradient at each linear's output, token by token."""

    def hook(path: str) -> Any:
        def note(grad: Tensor) -> None:
            found.setdefault(path, []).append(grad.float().square().sum(-1).cpu())

        def forward(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(note)

        return forward

    handles = [linear.register_forward_hook(hook(path)) for path, linear in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shown(samples: Sequence[Sample], batch_size: int, what: str, progress: bool) -> Iterator[Any]:
    """Iterate over batches behind a progress bar that counts samples."""
    with tqdm(total=len(samples), desc=what, disable=None if progress else True) as bar:
        for batch in batches(samples, batch_size):
            yield batch
            bar.update(len(batch))
