"""Scores of whole neurons, heads and layers from calibration, behind one table.

Higher stays. Query heads that share keys and values go together: `select_uniform` adds up theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ...core.data import Sample, check_length
from ...core.errors import ExciseError, finer, look_up
from ...core.families import ModelView
from ...core.memory import Forecast, held_with
from ...lrp.run import forecast as forecast_relevance
from .formulas import flap, wanda
from .shrink import STRUCTURED, StructuredComponent
from .sources import (
    Given,
    by_chance,
    by_influence,
    by_inputs,
    by_magnitude,
    by_relevance,
    relevance_options,
)


@dataclass(frozen=True)
class UnitCriterion:
    """One way to score whole units."""

    name: str
    scores: Callable[[Given], Tensor]
    """Gives (layers, units)."""
    summary: str
    source: str
    components: tuple[StructuredComponent, ...] = ("neurons", "heads")
    """What it can score."""
    needs_data: bool = True
    """Whether calibration samples make a difference."""
    method: str | None = None
    """A name of `excise.lrp.methods.METHODS`, if it takes gradients."""
    comparable: bool = False
    """Whether scores mean the same in two layers."""


def unit_scores(
    model: Any,
    samples: Sequence[Sample],
    component: StructuredComponent,
    criterion: str,
    *,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> Float[Tensor, "*layers_units"]:
    """Score the units of a model on calibration samples; padding does not count.

    Args:
        model: A causal language model of a supported family; left as it was.
        samples: Calibration samples.
        component: `neurons`, `heads` or `layers`.
        criterion: A name of `UNIT_CRITERIA` that can score them.
        batch_size: Samples per pass.
        seed: Of the criterion `random`.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        (layers, d_mlp), (layers, n_heads) or (layers,), at least 0, on the CPU; what
        `select_uniform` takes.

    Raises:
        ExciseError: An unknown criterion, or one for other components; no samples, or too long
            ones; scores that are not finite; quantised weights that a criterion reads.
    """
    chosen, view = get_unit_criterion(criterion, component), ModelView.of(model)
    check_length(samples, model.config)
    scores = chosen.scores(Given(view, samples, component, batch_size, seed, progress))
    if not bool(scores.isfinite().all()):
        dtype = view.embedding.weight.dtype
        raise ExciseError(
            f"scores of {component} by {criterion!r} are NaN or infinite: {finer(dtype)}"
        )
    return scores.flatten() if component == "layers" else scores


def get_unit_criterion(name: str, component: StructuredComponent) -> UnitCriterion:
    """Return a criterion by name, if it can score a component.

    Raises:
        ExciseError: No criterion has this name, or it scores other components.
    """
    chosen = look_up("unit criterion", name, UNIT_CRITERIA)
    if component not in chosen.components:
        able = [c.name for c in UNIT_CRITERIA.values() if component in c.components]
        raise ExciseError(
            f"criterion {name!r} scores {' and '.join(chosen.components)}, not {component}: "
            f"for these take one of {', '.join(able)}"
        )
    return chosen


def forecast_units(
    model: Any,
    samples: Sequence[Sample],
    component: StructuredComponent,
    criterion: str,
    batch_size: int,
) -> Forecast:
    """Count the memory that scoring will take; the model is not run, and time is not told."""
    chosen, view = get_unit_criterion(criterion, component), ModelView.of(model)
    if chosen.method is not None:
        options = relevance_options(chosen.method, component)
        return forecast_relevance(model, samples, batch_size, probe=False, **options)
    size = view.embedding.weight.element_size()
    widest = 8 * max(view.layers[0].mlp_out.weight.numel(), view.d_model)  # one matrix in float64
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    tokens = min(batch_size, len(samples)) * longest if chosen.needs_data else 0
    activations = tokens * (3 * view.d_mlp + 8 * view.d_model) * size
    return Forecast(held_with(model) + widest + activations)


_ALL = (
    UnitCriterion(
        "magnitude", by_magnitude, "norm of all weights of a unit", "Han et al. 2015",
        needs_data=False,
    ),
    UnitCriterion(
        "wanda", by_inputs(wanda, "input_square"),
        "norm of the output weights times norm of the activation", "arXiv 2312.11983, Wanda-sp",
    ),
    UnitCriterion(
        "flap", by_inputs(flap, "input_square", "input_sum", "tokens"),
        "variance of the activation times square of the output weights", "arXiv 2312.11983",
    ),
    UnitCriterion(
        "fisher", by_relevance("gradient-x-activation"),
        "second moment of activation x gradient; of layers, summed over neurons and heads",
        "arXiv 1906.10771, squared at each token", STRUCTURED,
        method="gradient-x-activation", comparable=True,
    ),
    UnitCriterion(
        "lrp", by_relevance("lrp"),
        "second moment of relevance; summed like fisher; shrinks from layer to layer",
        "arXiv 2402.05602, squared at each token", STRUCTURED, method="lrp",
    ),
    UnitCriterion(
        "block-influence", by_influence, "how far a layer turns the residual stream",
        "arXiv 2403.03853, ShortGPT", ("layers",), comparable=True,
    ),
    UnitCriterion(
        "random", by_chance, "seeded uniform numbers: the control", "none", STRUCTURED,
        needs_data=False, comparable=True,
    ),
)  # fmt: skip
UNIT_CRITERIA: dict[str, UnitCriterion] = {criterion.name: criterion for criterion in _ALL}
"""Every criterion of whole units by name; what lists, checks or documents them reads this table."""
