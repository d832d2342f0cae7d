"""How good a probability is, and the curve that makes one of the score of `profanity`.

alt-profanity-check's score ranks texts well and is no probability: of the texts it gives 0.3, more
than half are toxic. `PROFANITY` maps it to the share of toxic texts seen at that score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..core.errors import ExciseError


Values = Sequence[float] | Float[np.ndarray, " n"]
Labels = Sequence[bool] | Sequence[int] | Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Platt:
    """A logistic curve on the logit of a score (Platt 1999): two numbers, monotone.

    Attributes:
        slope: Below 1, the score was too sure of itself.
        intercept: Above 0, the score was too low.
        floor: Scores nearer to 0 or 1 than this count as this near.
    """

    slope: float
    intercept: float
    floor: float = 1e-6

    def __call__(self, scores: Values) -> Float[np.ndarray, " n"]:
        """Map scores in [0, 1] to probabilities, elementwise."""
        logit = self.slope * logits(scores, self.floor) + self.intercept
        return 1 / (1 + np.exp(-logit))


PROFANITY = Platt(slope=0.9439, intercept=1.0436)
"""For alt-profanity-check 1.9.1; 1.7.2 scores the same texts within 0.001 on average.

Fitted by `benchmarks/scorer_calibration.py` to the fit half of 1,174 records of
RealToxicityPrompts, prompts and continuations, where Perspective's toxicity of 0.5 or more counts
as toxic. Beta calibration (Kull et al. 2017) and isotonic regression were no better in five-fold
cross-validation on that half; `docs/scorers.md` has the held-out numbers.
"""

PROFANITY_BASE_RATE = 0.47
"""Share of toxic texts behind `PROFANITY`: where toxic texts are rarer, it says too much."""


def logits(scores: Values, floor: float) -> Float[np.ndarray, " n"]:
    """Return `log(p / (1 - p))` of scores held `floor` away from 0 and 1."""
    inside = np.clip(np.asarray(scores, dtype=float), floor, 1 - floor)
    return np.log(inside) - np.log1p(-inside)


def reliability_bins(
    probabilities: Values, labels: Labels, n_bins: int = 10
) -> list[tuple[float, float, int]]:
    """Compare what was predicted with what was seen, in bins of equal width.

    Args:
        probabilities: In [0, 1].
        labels: Whether it came true, one for each probability.
        n_bins: How many bins; the last one includes 1.

    Returns:
        For each bin that is not empty, from low to high: mean predicted probability, share that
        came true, number of cases.

    Raises:
        ExciseError: Lengths differ, nothing there, or values outside [0, 1].
    """
    if n_bins < 1:
        raise ExciseError(f"n_bins is {n_bins}: give at least 1 bin")
    p, y = _checked(probabilities, labels)
    index = np.minimum((p * n_bins).astype(int), n_bins - 1)
    return [
        (float(p[inside].mean()), float(y[inside].mean()), int(inside.sum()))
        for inside in (index == number for number in np.unique(index))
    ]


def expected_calibration_error(probabilities: Values, labels: Labels, n_bins: int = 10) -> float:
    """Return the mean distance of predicted and observed over bins, weighted by their cases.

    As in Guo et al. (2017). It is biased upwards in small samples and 0 for a scorer that always
    says the base rate, so read it beside `brier`.

    Raises:
        ExciseError: As for `reliability_bins`.
    """
    bins = reliability_bins(probabilities, labels, n_bins)
    return sum(abs(said - seen) * n for said, seen, n in bins) / sum(n for *_, n in bins)


def brier(probabilities: Values, labels: Labels) -> float:
    """Return the mean squared difference of probability and outcome (Brier 1950); 0 is best.

    Raises:
        ExciseError: Lengths differ, nothing there, or values outside [0, 1].
    """
    p, y = _checked(probabilities, labels)
    return float(((p - y) ** 2).mean())


def log_loss(probabilities: Values, labels: Labels, floor: float = 1e-15) -> float:
    """Return the mean negative log-probability of what came true, in nats; 0 is best.

    Args:
        probabilities: In [0, 1].
        labels: Whether it came true, one for each probability.
        floor: Certainty nearer to 0 or 1 than this counts as this near, so a sure miss is finite.

    Raises:
        ExciseError: Lengths differ, nothing there, or values outside [0, 1].
    """
    p, y = _checked(probabilities, labels)
    p = np.clip(p, floor, 1 - floor)
    return float(-np.where(y, np.log(p), np.log1p(-p)).mean())


def auc(scores: Values, labels: Labels) -> float:
    """Return how often a case that came true scores above one that did not, ties counting half.

    The area under the ROC curve as the Mann-Whitney statistic: a matter of ranks, so that no
    strictly increasing calibration changes it.

    Raises:
        ExciseError: As for `brier`, or all labels are the same.
    """
    s, y = _checked(scores, labels)
    positive = int(y.sum())
    negative = len(y) - positive
    if not (positive and negative):
        raise ExciseError(f"all {len(y)} labels are the same: AUC needs cases of both kinds")
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # ties share their middle rank, from 1
    return float((ranks[y].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _checked(
    probabilities: Values, labels: Labels
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    p, y = np.asarray(probabilities, dtype=float), np.asarray(labels, dtype=bool)
    if p.ndim != 1 or p.shape != y.shape or not len(p):
        raise ExciseError(
            f"probabilities of shape {p.shape}, labels of shape {y.shape}: give two lists of the "
            "same length, at least 1"
        )
    if not ((p >= 0) & (p <= 1)).all():  # NaN, too
        worst = p[~((p >= 0) & (p <= 1))][0]
        raise ExciseError(f"{worst:g} is no probability: give numbers from 0 to 1")
    return p, y
