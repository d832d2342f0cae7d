"""Two models on the same units: what changed, and whether it can be told from chance."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from ..core.bootstrap import RESAMPLES, Bootstrap, Values
from ..core.effects import Resampled
from ..core.errors import ExciseError
from ..core.statistics import Statistic, unseen


POWER = 0.8


@dataclass(frozen=True)
class Paired:
    """Two models on the same units: what changed from the first to the second."""

    difference: Bootstrap
    """Second less first, in the statistic's own unit."""
    relative: Bootstrap
    """Second less first, over the size of the first: below 0 means less, whatever its sign."""
    wins: int
    """Units on which the second is better."""
    losses: int
    sign_p: float
    """Two-sided sign test over units that differ."""
    permutation_p: float
    """Two-sided test that swaps the two models' values within units."""
    detectable: float
    """Smallest true difference that 80 % of such comparisons would find at 5 %."""

    def equivalence_p(self, margin: float) -> float:
        """Return the p value of two one-sided tests (TOST, Schuirmann 1987).

        Args:
            margin: As in 0.01: the ratio lies between 1 / 1.01 and 1.01.
        """
        return max(self.relative.p_below(1 / (1 + margin) - 1), self.relative.p_above(margin))


def paired(
    statistic: Statistic,
    first: dict[str, Values],
    second: dict[str, Values],
    seed: int = 0,
) -> Paired:
    """Compare two models on the same units, in the same order.

    Differences of proportions are resampled with one win and one loss added (Bonett and Price
    2012), as no difference among few prompts is no proof that there is none; so are others where
    few units differ, see `unseen`.

    Raises:
        ExciseError: Their denominators differ, as tokens of two tokenizers do.
    """
    (x, w), (y, v) = statistic.quotient(first), statistic.quotient(second)
    if not np.array_equal(w, v):
        raise ExciseError(
            f"{statistic.name} counts other {statistic.per} in the second model: "
            "compare word or byte perplexity under --protocol document"
        )
    n, drawn = len(x), np.stack([x, y, w], 1)
    if statistic.proportion:
        size = 1.0
    else:
        ratio = statistic.per is not None
        size = 0.0 if ratio else unseen(y - x, np.concatenate([x, y]))
    if size:
        middle = 0.5 if statistic.proportion else (x.mean() + y.mean()) / 2
        low, high = middle - size / 2, middle + size / 2
        drawn = np.concatenate([drawn, [[high, low, 1], [low, high, 1]]])
    found, exp = Resampled(drawn, n, seed), statistic.link == "exp"
    a, b = (float(statistic.linked(z.sum() / w.sum())) for z in (x, y))
    gains = (y - x) * (1 if statistic.better == "higher" else -1)
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return Paired(
        difference=found.effect("difference", exp, b - a),
        relative=found.effect("relative", exp, float(_relative(np.float64(a), b))),
        wins=wins,
        losses=losses,
        sign_p=float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
        permutation_p=_swap_test(y - x, seed),
        detectable=_detectable(statistic, b, drawn),
    )


def _relative(before: Any, after: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(before == after, 0.0, (after - before) / np.abs(before))


def _swap_test(differences: Values, seed: int) -> float:
    """Return the two-sided p value of a mean difference under swaps within units."""
    if len(differences) < 2 or not differences.any():
        return 1.0
    found = stats.permutation_test(
        (differences,),
        lambda d, axis: d.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 10_000_000 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _detectable(statistic: Statistic, value: float, drawn: Float[np.ndarray, "n columns"]) -> float:
    """Return the minimum detectable effect at 5 % and 80 % power (Bloom 1995)."""
    n, w = len(drawn), drawn[:, 2]
    if n < 2:
        return math.inf
    differences = drawn[:, 1] - drawn[:, 0]
    residuals = (differences - differences.sum() / w.sum() * w) / w.mean()
    error = residuals.std(ddof=1) / math.sqrt(n)
    slope = value if statistic.link == "exp" else 1.0
    factor = stats.t.ppf(1 - 0.05 / 2, n - 1) + stats.t.ppf(POWER, n - 1)
    return float(factor * error * slope)
