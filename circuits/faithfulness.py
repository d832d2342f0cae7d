"""Is it the circuit? What is left of a behaviour when only the circuit is, and when it is gone.

All statistics are over prompts. Faithfulness is a ratio of means (MIB, EAP-IG):
`f = (m(C) - m(empty)) / (m(M) - m(empty))`, with the logit difference `m` of the circuit, of the
whole model, and of the run in which every component is replaced, which is measured, not taken as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.integrate import trapezoid
from torch import Tensor

from ..core.bootstrap import Bootstrap, resampled_sums
from ..core.errors import ExciseError, finer
from ..core.statistics import Measure, Statistic, measure
from .ablation import Ablator
from .levels import Level, Shape
from .pairs import logit_difference, only_last


FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Kept fractions at which MIB measures circuits."""

_MOST_KEYED = 1 << 20

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Outcome:
    """What a run answers, prompt by prompt."""

    difference: Values
    """Logit of the answer less that of the wrong one."""
    kl: Values
    """Kullback-Leibler divergence from the whole model's next-token distribution, in nats."""

    @property
    def correct(self) -> Values:
        """1 where the answer wins."""
        return (self.difference > 0).astype(float)


class Trial:
    """Prompts on which circuits are judged, with the two ends of the scale.

    Args:
        ablator: Prompts and what replaces components.
        level: The grain of the circuits.

    Raises:
        ExciseError: Replacing everything changes nothing, so there is no scale.
    """

    def __init__(self, ablator: Ablator, level: Level):
        self.ablator, self.level = ablator, level
        self.shape = Shape.of(ablator.view)
        self._logprobs: list[Tensor] = []
        self._known: dict[bytes, Outcome] = {}
        self.full = self._outcome(None, keep=True)
        self.empty = self.run(torch.zeros(level.count(self.shape), dtype=torch.bool))
        if not abs((self.full.difference - self.empty.difference).mean()) > 1e-6:
            raise ExciseError(
                "the answer is the same when every component is replaced, so that no circuit can "
                "be told from none: use counterfactual prompts that change what decides"
            )

    def tidy(self, chosen: Bool[Tensor, " components"]) -> Bool[Tensor, " components"]:
        """Drop what is chosen to no effect, such as edges that lead nowhere."""
        return self.level.tidy(self.shape, chosen)

    def run(self, chosen: Bool[Tensor, " components"]) -> Outcome:
        """Run the circuit of the chosen components; one that was run before is known."""
        if len(chosen) > _MOST_KEYED:
            return self._outcome(chosen)
        key = np.packbits(chosen.numpy()).tobytes()
        if key not in self._known:
            self._known[key] = self._outcome(chosen)
        return self._known[key]

    def value(self, chosen: Bool[Tensor, " components"]) -> float:
        """Return the faithfulness of a circuit, without its interval."""
        return self.score(self.run(chosen))

    def score(self, outcome: Outcome) -> float:
        """Return the faithfulness of an outcome, without its interval."""
        above, below = self._columns(outcome)
        return float(above.sum() / below.sum())

    def faithfulness(self, outcome: Outcome) -> Measure:
        """Return the faithfulness with its 95 % bootstrap interval over prompts."""
        above, below = self._columns(outcome)
        columns = {"above": above, "below": below}
        return measure(_FAITHFULNESS, columns, f"{self.ablator.ablation} ablation")

    def accuracy(self, outcome: Outcome) -> Measure:
        """Return the share of prompts whose answer wins, with Wilson's interval."""
        columns = {"correct": outcome.correct}
        return measure(_ACCURACY, columns, f"{self.ablator.ablation} ablation")

    def mean(self, name: str, values: Values) -> Measure:
        """Return a mean over prompts with its bootstrap interval."""
        columns = {name: np.asarray(values, float)}
        return measure(Statistic(name, name), columns, f"{self.ablator.ablation} ablation")

    def areas(self, fractions: Sequence[float], outcomes: Sequence[Outcome]) -> "Areas":
        """Return CPR and CMD of a curve with bootstrap intervals.

        Args:
            fractions: Kept shares, rising.
            outcomes: One for each.
        """
        columns = [self._columns(outcome) for outcome in outcomes]
        drawn = np.stack([*(above for above, _ in columns), columns[0][1]], 1)
        sums = np.concatenate([drawn.sum(0)[None], resampled_sums(drawn, 0)])
        curves = sums[:, :-1] / sums[:, -1:]
        protocol = f"{self.ablator.ablation} ablation, {len(fractions)} fractions"

        def summed(values: np.ndarray) -> Measure:
            areas = np.array([area(fractions, row) for row in values])
            found = Bootstrap(float(areas[0]), areas[1:], len(drawn))
            return Measure(found.value, found.interval(), found.n, protocol)

        return Areas(cpr=summed(curves), cmd=summed(np.abs(1 - curves)))

    def _columns(self, outcome: Outcome) -> tuple[Values, Values]:
        empty = self.empty.difference
        return outcome.difference - empty, self.full.difference - empty

    def _outcome(self, chosen: Bool[Tensor, " components"] | None, keep: bool = False) -> Outcome:
        kept = None if chosen is None else self.level.kept(self.shape, chosen)
        differences, divergences = [], []
        for index, (batch, logits) in enumerate(self.ablator.run(kept)):
            if not bool(logits.isfinite().all()):
                raise ExciseError(f"the logits are NaN or infinite: {finer(logits.dtype)}")
            found = logits[:, 0].float().log_softmax(-1)
            if keep:
                self._logprobs.append(found.cpu())
            full = self._logprobs[index].to(found.device)
            divergences.append((full.exp() * (full - found)).sum(-1).cpu())
            differences.append(logit_difference(logits.float(), only_last(batch)).cpu())
        return Outcome(*(torch.cat(x).double().numpy() for x in (differences, divergences)))


_FAITHFULNESS = Statistic("faithfulness", "above", "below", better="higher")
_ACCURACY = Statistic("accuracy", "correct", better="higher", proportion=True)


@dataclass(frozen=True)
class Areas:
    """A faithfulness curve in two numbers (MIB, arXiv 2504.13151)."""

    cpr: Measure
    """Integrated circuit performance ratio: the area under f."""
    cmd: Measure
    """Integrated circuit-model distance: the area under |1 - f|."""


def area(fractions: Sequence[float], values: Sequence[float] | Values) -> float:
    """Return the area under a curve by trapezoids on a linear scale, as MIB does.

    It begins at the first fraction: with 0.001 to 1 a perfect circuit has 0.999.
    """
    return float(trapezoid(values, fractions))


def sizes(n: int, fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """Return how many of n components each fraction keeps."""
    return [int(fraction * n) for fraction in fractions]


def jaccard(one: Bool[Tensor, " components"], other: Bool[Tensor, " components"]) -> float:
    """Return the overlap of two circuits: common components over all that are in either."""
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0
