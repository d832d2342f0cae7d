"""How much to cut: the largest effect that a perplexity budget allows, on data for selection alone.

A dose is a number of components and a factor. Each is tried on the live model and undone. The
test data play no part here, so the winner's luck does not reach the report.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..core.errors import ExciseError
from ..core.loading import Loaded
from ..core.statistics import Measure
from ..edits.edit import Edit
from ..eval.outcome import Metric
from ..eval.perplexity import Perplexity
from ..eval.run import Evaluation, evaluate
from .data.target import Judgement, Target


SIZES = (10, 30, 100, 300, 1000)
FACTORS = (0.0, 0.5)
CONFIDENCE = 0.95
"""Of the bound that is held against the budget."""
FEWEST = 8
"""Windows from which the bound of a change is trusted; below, the point estimate decides."""
BEYOND = 5.0
"""A factor's series ends with the first dose that costs this many times the budget."""

Factor = float | Literal["own", "learned"]
"""What components are scaled by: one number for all, what the method says, or what is learned."""

PERPLEXITY = Judgement("perplexity", "token_perplexity", "lower")


class BudgetError(ExciseError):
    """An edit costs more than was allowed; the model is as it was."""


@dataclass(frozen=True)
class Cost:
    """What an edit does to perplexity, and whether a budget allows it."""

    relative: Measure
    """Change over the value before."""
    bound: float
    """Its one-sided 95 % upper bound."""
    budget: float
    by: str
    """`bound` or `estimate`: which of the two is held against the budget."""

    @property
    def decisive(self) -> float:
        """The number that is held against the budget."""
        return self.bound if self.by == "bound" else self.relative.value

    @property
    def within(self) -> bool:
        """Whether the budget allows it; NaN does not pass."""
        return self.decisive <= self.budget

    def __str__(self) -> str:
        which = "upper bound" if self.by == "bound" else "point estimate, too few windows for more"
        return (
            f"perplexity {100 * self.relative.value:+.2f} % ({which} "
            f"{100 * self.decisive:+.2f} %, budget {100 * self.budget:g} %)"
        )


@dataclass(frozen=True)
class Dose:
    """One trial."""

    size: int
    factor: Factor
    cost: Cost
    gain: Measure | None
    """Share of the behaviour that is gone; None where it could not be measured, see `note`."""
    note: str = ""
    scaled: int = 0
    """Components that are scaled; of those asked for, a learned factor of 1 leaves some alone."""

    @property
    def components(self) -> str:
        """How many, and how many of them are scaled where that is not all."""
        return f"{self.size}" if self.scaled in (0, self.size) else f"{self.size} ({self.scaled})"


@dataclass(frozen=True)
class DoseResponse:
    """All trials, in order, and the one that was chosen."""

    doses: tuple[Dose, ...]
    budget: float
    chosen: Dose | None
    """The largest gain within the budget; None where no dose is within it, or none gains."""

    def to_json(self) -> list[dict[str, Any]]:
        """Return a row per dose."""
        return [
            {
                "size": dose.size,
                "scaled": dose.scaled,
                "factor": dose.factor,
                "gain": dose.gain.value if dose.gain else None,
                "gain_ci": list(dose.gain.ci) if dose.gain else None,
                "perplexity": dose.cost.relative.value,
                "perplexity_ci": list(dose.cost.relative.ci),
                "perplexity_bound": dose.cost.bound,
                "decided_by": dose.cost.by,
                "within": dose.cost.within,
                "chosen": dose is self.chosen,
                "note": dose.note,
            }
            for dose in self.doses
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return headers and rows for a human."""
        rows = []
        for dose in self.doses:
            gain = percent(dose.gain) if dose.gain else dose.note
            mark = "chosen" if dose is self.chosen else "" if dose.cost.within else "over budget"
            rows.append(
                [dose.components, factor_text(dose.factor), gain, percent(dose.cost.relative),
                 f"{100 * dose.cost.decisive:+.2f} %", mark]
            )  # fmt: skip
        decided = {dose.cost.by for dose in self.doses}
        last = "perplexity, decisive" if len(decided) > 1 else f"perplexity, {min(decided)}"
        return ["components", "factor", "behaviour gone", "perplexity", last, ""], rows


def factor_text(factor: float | str) -> str:
    """Render a factor."""
    return factor if isinstance(factor, str) else f"{factor:g}"


def percent(measure: Measure) -> str:
    """Render a share with its interval."""
    low, high = measure.ci
    return f"{100 * measure.value:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]"


def cost_of(before: Evaluation, after: Evaluation, budget: float) -> Cost:
    """Compare the perplexity of two models with a budget.

    Args:
        before: Measured for perplexity.
        after: On the same windows.
        budget: Largest relative increase, as in 0.01.
    """
    found = PERPLEXITY.compare(before, after)
    by = "bound" if len(found.before.units) >= FEWEST else "estimate"
    return Cost(found.relative, found.paired.relative.bound(CONFIDENCE), budget, by)


def choose_dose(
    loaded: Loaded,
    make: Callable[[int, Any], Edit],
    target: Target,
    prompts: Sequence[str],
    text: Perplexity,
    *,
    budget: float,
    sizes: Sequence[int] = SIZES,
    factors: Sequence[Factor] = FACTORS,
    cache: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> DoseResponse:
    """Try doses and choose the one that removes most of the behaviour within the budget.

    Args:
        loaded: The model, which is left as it was.
        make: Returns the edit of so many components with this factor, as `Contrast.edit` does
            for numbers.
        target: What is to go.
        prompts: Those for selection.
        text: Perplexity on the text for selection.
        budget: Largest relative increase of perplexity, as in 0.01.
        sizes: Numbers of components.
        factors: What the components are scaled by.
        cache: Folder of rows measured before; see `evaluate`.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given a line per dose.

    Raises:
        ExciseError: No size or factor, a budget below 0, or a model that does not show the
            behaviour.
    """
    check_grid(sizes, factors, budget)
    behaviour = target.metric(prompts)

    def measured(metrics: Sequence[Metric]) -> Evaluation:
        return evaluate(loaded, metrics, cache=cache, progress=progress)

    before = measured([behaviour, text])
    target.check_shown(before)
    doses: list[Dose] = []
    failed: ExciseError | None = None
    for factor in dict.fromkeys(factors):
        for size in sorted(set(sizes)):
            try:
                edit = make(size, factor)
            except ExciseError as error:  # another dose may be worth it
                failed = error
                if tell:
                    tell(f"{size} components x {factor_text(factor)}: {error}")
                continue
            with edit.applied(loaded.model):
                dose = _tried(size, factor, before, target, measured, behaviour, text, budget)
            dose = replace(dose, scaled=edit.n_components)
            doses.append(dose)
            if tell:
                gone = percent(dose.gain) if dose.gain else dose.note
                tell(
                    f"{size} components x {factor_text(factor)}: behaviour gone {gone}; {dose.cost}"
                )
            if dose.gain is None or not dose.cost.relative.value <= BEYOND * budget:
                break
    if failed and not doses:
        raise failed
    fitting = [d for d in doses if d.gain and d.gain.value > 0 and d.cost.within]
    chosen = max(fitting, key=lambda d: (d.gain.value if d.gain else 0.0, -d.size), default=None)
    return DoseResponse(tuple(doses), budget, chosen)


def _tried(
    size: int,
    factor: Factor,
    before: Evaluation,
    target: Target,
    measured: Callable[[Sequence[Metric]], Evaluation],
    behaviour: Metric,
    text: Perplexity,
    budget: float,
) -> Dose:
    """Measure an edited model; one that says nothing any more is a dose without a gain."""
    cost = cost_of(before, measured([text]), budget)
    try:
        gain = target.judge.gain(before, measured([behaviour]))
    except ExciseError as error:
        return Dose(size, factor, cost, None, str(error))
    return Dose(size, factor, cost, gain)


def check_grid(sizes: Sequence[int], factors: Sequence[Factor], budget: float) -> None:
    """Refuse a grid that means nothing, before a model is loaded.

    Raises:
        ExciseError: Names the value.
    """
    if not sizes or min(sizes) < 1:
        raise ExciseError(f"sizes are {list(sizes)}: give numbers of components from 1")
    numbers = [factor for factor in factors if not isinstance(factor, str)]
    if not factors or any(not -10 <= factor < 1 for factor in numbers):  # NaN, too
        raise ExciseError(f"factors are {list(factors)}: give numbers below 1, as in 0 or 0.5")
    if not 0 <= budget < 10:
        raise ExciseError(f"the perplexity budget is {budget:g}: give a share, as in 1%")


def check_budget(
    edit: Edit,
    loaded: Loaded,
    text: Perplexity,
    budget: float,
    before: Evaluation | None = None,
    cache: Path | None = None,
) -> Cost:
    """Try an edit, measure its cost and undo it.

    Args:
        edit: What is tried.
        loaded: The model, which is left as it was.
        text: What is measured.
        budget: Largest relative increase of perplexity.
        before: The unedited model's evaluation, if there is one.
        cache: Folder of rows measured before; see `evaluate`.

    Raises:
        BudgetError: The budget does not allow it.
    """
    before = before or evaluate(loaded, [text], cache=cache)
    with edit.applied(loaded.model):
        cost = cost_of(before, evaluate(loaded, [text], cache=cache), budget)
    if not cost.within:
        raise BudgetError(f"refused: {edit.n_components} components cost too much, {cost}")
    return cost


@contextmanager
def guarded(
    edit: Edit,
    loaded: Loaded,
    text: Perplexity,
    budget: float,
    before: Evaluation | None = None,
    cache: Path | None = None,
) -> Iterator[Cost]:
    """Have the model edited for a `with` block, if the budget allows it.

    Raises:
        BudgetError: It does not; the block is not entered, and the model is as it was.
    """
    cost = check_budget(edit, loaded, text, budget, before, cache)
    with edit.applied(loaded.model):
        yield cost
