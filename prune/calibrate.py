"""Calibration of the whole model at once: what gradients and relevance say of every weight."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from ..core.data import Sample
from ..core.families import ModelView
from ..lrp.fitter import RelevanceFitter
from ..lrp.methods import Aggregate
from .activations import input_statistics, shown
from .statistics import LinearStatistics


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


def passes(needs: Collection[str]) -> dict[str, Pass]:
    """Return the backward passes that gather some fields."""
    found = {name: each for name, each in PASSES.items() if name in needs}
    if "lrp_input_square" in needs:  # comes from this pass
        found["lrp_square"] = PASSES["lrp_square"]
    return found


def survey(
    view: ModelView,
    samples: Sequence[Sample],
    needs: Collection[str],
    *,
    batch_size: int = 4,
    progress: bool = False,
) -> dict[str, LinearStatistics]:
    """Gather statistics of every linear of the decoder layers, of the model as it is now.

    Gradients are of the log-probability of every next token (with the relevance rules for the
    fields of LRP), one backward pass over all samples per field.

    Args:
        view: The model, held still meanwhile.
        samples: Calibration samples.
        needs: Fields of `LinearStatistics`; those of `PASSES`, and those of inputs.
        batch_size: Samples per pass.
        progress: Whether to draw progress bars on a terminal.

    Returns:
        Statistics by path, without gram matrices.

    Raises:
        ExciseError: As `RelevanceFitter`.
    """
    linears = view.layer_linears()
    fields = passes(needs)
    found: dict[str, dict[str, Tensor]] = {path: {} for path in linears}
    wants_inputs = "input_square" in needs
    for name, gathered in fields.items():
        sums = _backward(view, linears, samples, gathered, batch_size, progress)
        for path, total in sums.items():
            if name in _WITH_WEIGHT:
                weight = linears[path].weight.detach().to(total)
                total = total.mul_(weight if name == "lrp_signed" else weight.abs())
            if name == "lrp_square" and "lrp_input_square" in needs:
                found[path]["lrp_input_square"] = total.sum(0)  # tokens weighed by ||g_t||^2
            if name in needs:
                found[path][name] = total
    tokens = sum(len(sample.input_ids) for sample in samples)
    inputs = [LinearStatistics(tokens)] * len(linears)
    if wants_inputs:
        seen = shown(samples, batch_size, "activations", progress)
        inputs = input_statistics(view, seen, list(linears.values()))
    return {
        path: replace(read, **fields_found, name=path)
        for (path, fields_found), read in zip(found.items(), inputs, strict=True)
    }


def _backward(
    view: ModelView,
    linears: Mapping[str, nn.Linear],
    samples: Sequence[Sample],
    gathered: Pass,
    batch_size: int,
    progress: bool,
) -> dict[str, Tensor]:
    fitter = RelevanceFitter(
        view.model, _TARGET, gathered.method, (), tuple(linears), gathered.aggregate
    )
    for batch in shown(samples, batch_size, f"gradients ({gathered.method})", progress):
        fitter.update(batch)
    return fitter.weight_sums()
