"""What changed from one model to another, on the same units."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..core.errors import ExciseError
from ..core.statistics import Measure, Statistic
from .outcome import Outcome
from .paired import Paired, paired
from .run import Evaluation


@dataclass(frozen=True)
class Comparison:
    """One statistic of one outcome, before and after."""

    outcome: str
    statistic: Statistic
    before: Outcome
    after: Outcome

    @cached_property
    def paired(self) -> Paired:
        """The paired analysis."""
        columns = dict(self.before.columns), dict(self.after.columns)
        return paired(self.statistic, *columns, seed=self.before.seed)

    @property
    def name(self) -> str:
        """As in `perplexity.token_perplexity`."""
        return f"{self.outcome}.{self.statistic.name}"

    @property
    def difference(self) -> Measure:
        """After less before, in the statistic's own unit."""
        return self._measure(self.paired.difference, "paired difference")

    @property
    def relative(self) -> Measure:
        """After over before, less 1."""
        return self._measure(self.paired.relative, "paired relative change")

    def _measure(self, found: Any, how: str) -> Measure:
        protocol = f"{how}, units resampled together: {self.before.protocol}"
        return Measure(found.value, found.interval(), found.n, protocol)


def compare_evaluations(before: Evaluation, after: Evaluation) -> list[Comparison]:
    """Pair everything that both models were measured for.

    Raises:
        ExciseError: They were measured on different units, so nothing can be paired.
    """
    return [
        Comparison(name, statistic, outcome, after[name])
        for name, outcome in before.outcomes.items()
        for statistic in comparable(name, outcome, after[name])
    ]


def comparable(name: str, before: Outcome, after: Outcome) -> list[Statistic]:
    """Return the statistics that can be paired: those that count the same things.

    Raises:
        ExciseError: Not one can, or units or protocol differ.
    """
    if before.protocol != after.protocol:
        raise ExciseError(
            f"{name} was measured in another way in the second model, so nothing can be paired: "
            f"{before.protocol!r} and {after.protocol!r}; measure both in one way"
        )
    if before.units != after.units:
        way_out = "give both the same prompts (those of a task depend on the tokenizer's words)"
        if name == "perplexity":
            way_out = "of one text models with different tokenizers need --protocol document"
        raise ExciseError(
            f"{name} was measured on other units in the second model, so nothing can be paired: "
            f"{way_out}"
        )
    found = [s for s in before.statistics if _same_count(s, before, after)]
    if not found:
        raise ExciseError(f"{name}: the two models share no statistic that counts the same things")
    return found


def _same_count(statistic: Statistic, before: Outcome, after: Outcome) -> bool:
    if statistic not in after.statistics:
        return False
    per = statistic.per
    return per is None or np.array_equal(before.columns[per], after.columns[per])
