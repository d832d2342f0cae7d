"""Statistics of what was measured: estimates, intervals, paired tests.

Everything here works on per-unit values, a unit being what was drawn independently: a prompt with
all its completions, a document, a window. Resampling whole units is what makes the intervals
honest when values within a unit belong together (Cameron, Gelbach and Miller 2008).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from ..core.errors import ExciseError


LEVEL = 0.95
"""Confidence of every interval unless said otherwise."""

RESAMPLES = 4000
POWER = 0.8

Values = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Measure:
    """A measured value with its uncertainty and the protocol that gave it."""

    value: float
    ci: tuple[float, float]
    """95 % confidence interval."""
    n: int
    """Independent units behind it: windows, documents, prompts."""
    protocol: str

    def __str__(self) -> str:
        return f"{short(self.value)} [{short(self.ci[0])}, {short(self.ci[1])}]"


def short(value: float) -> str:
    """Render a number with about three digits."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if 0 < size < 0.095:
        return f"{value:.2g}"
    return f"{value:.2f}" if size < 100 else f"{value:.0f}" if size < 1e5 else f"{value:.2e}"


@dataclass(frozen=True)
class Statistic:
    """How per-unit columns become one number: `link(sum(of) / sum(per))`."""

    name: str
    of: str
    """Column that is summed."""
    per: str | None = None
    """Column it is divided by; the number of units if there is none."""
    link: Literal["mean", "exp"] = "mean"
    scale: float = 1.0
    """Factor of the quotient, before the link."""
    better: Literal["lower", "higher"] = "lower"
    proportion: bool = False
    """Whether each unit is a yes or a no, so that Wilson's interval applies."""
    within: tuple[float, float] = (-math.inf, math.inf)
    """What the value can be; intervals end there."""

    def quotient(self, columns: dict[str, Values]) -> tuple[Values, Values]:
        """Return numerator and denominator of each unit.

        Raises:
            ExciseError: One is NaN or infinite, which would compare as small with any bound.
        """
        above = self.scale * columns[self.of]
        below = np.ones_like(above) if self.per is None else columns[self.per]
        if not (np.isfinite(above).all() and np.isfinite(below).all()):
            raise ExciseError(f"{self.name}: the value of a unit is NaN or infinite")
        return above, below

    def linked(self, quotient: Any) -> Any:
        """Apply the link to a quotient or an array of them; a broken model is 1e304, not inf."""
        return np.exp(np.minimum(quotient, 700.0)) if self.link == "exp" else quotient


@dataclass(frozen=True)
class Bootstrap:
    """Resampled values of an estimate, and what they say about it.

    Bounds are those of the expanded percentile bootstrap (Hesterberg 2015, section 6.3): the
    percentile interval, widened so that it has the coverage of a t interval where units are few.
    """

    value: float
    resampled: Shaped[np.ndarray, " resamples"]
    n: int

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the two-sided interval at a confidence level."""
        tail = (1 - level) / 2
        return self.bound(tail), self.bound(1 - tail)

    def bound(self, probability: float) -> float:
        """Return the value that the truth lies below with this probability."""
        if self.n < 2:
            return -math.inf if probability < 0.5 else math.inf
        wide = math.sqrt(self.n / (self.n - 1)) * stats.t.ppf(probability, self.n - 1)
        # no interpolation: a resampled ratio can be infinite
        return float(np.quantile(self.resampled, stats.norm.cdf(wide), method="inverted_cdf"))

    def p_below(self, threshold: float) -> float:
        """Return the p value of 'the truth is at most the threshold': small where it is above.

        The inverse of `bound`, so a p value below 0.05 and a 95 % bound above the threshold are
        the same statement.
        """
        count = np.sum(self.resampled < threshold) + 0.5 * np.sum(self.resampled == threshold)
        if self.n < 2:
            return 1.0
        share = float((count + 0.5) / (len(self.resampled) + 1))
        narrow = stats.norm.ppf(share) * math.sqrt((self.n - 1) / self.n)
        return float(stats.t.cdf(narrow, self.n - 1))

    def p_above(self, threshold: float) -> float:
        """Return the p value of 'the truth is at least the threshold': small where it is below."""
        return 1.0 - self.p_below(threshold) if self.n > 1 else 1.0


def resampled_sums(
    values: Float[np.ndarray, "n columns"], seed: int, resamples: int = RESAMPLES
) -> Float[np.ndarray, "resamples columns"]:
    """Sum columns over bootstrap samples of the rows, the same rows for every column."""
    n = len(values)
    draw, columns = np.random.default_rng(seed), np.ascontiguousarray(values.T)
    block = max(1, 30_000 // n)  # drawn at once: few enough for the cache
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    drawn = (draw.integers(0, n, (size, n)) for size in sizes)
    return np.concatenate([columns[:, rows].sum(2).T for rows in drawn])


def estimate(statistic: Statistic, columns: dict[str, Values], seed: int = 0) -> Bootstrap:
    """Estimate a statistic and resample it over units.

    Args:
        statistic: What is estimated.
        columns: Per-unit values by name, all of one length.
        seed: Of the resampling.
    """
    x, w = statistic.quotient(columns)
    if not len(x):
        raise ExciseError("there is nothing to resample: no unit was measured")
    units = np.stack([x, w], 1)
    ratio = statistic.per is not None
    size = 0.0 if ratio or statistic.proportion else unseen(x - np.median(x), x)
    if size:
        units = np.concatenate([units, [[x.mean() + size, 1], [x.mean() - size, 1]]])
    sums = resampled_sums(units, seed)
    drawn = statistic.linked(_divided(sums[:, 0], sums[:, 1]))
    return Bootstrap(float(statistic.linked(x.sum() / w.sum())), drawn, len(x))


def unseen(deviations: Values, values: Values) -> float:
    """Return how far off a unit may be that was not drawn, where too few vary to tell.

    Resampling units that are all alike says that others must be, too. So where most units are
    alike and fewer than 20 are not, two more are resampled, off by this in either direction: as
    far as those that vary, or by as much as a value was large. The idea is that of adding a success
    and a failure to a proportion (Agresti and Coull 1998).

    Args:
        deviations: Of each unit from what most have.
        values: Of each unit.

    Returns:
        0 where enough vary.
    """
    varying = deviations[deviations != 0]
    if len(varying) >= min(20, len(deviations) / 2):
        return 0.0
    size = math.sqrt((varying**2).mean()) if len(varying) else np.abs(values).max()
    return float(size) or 1.0


def _divided(above: Values, below: Values) -> Values:
    if not below.all():
        raise ExciseError("a bootstrap sample measures nothing: too many units are empty")
    return above / below


def measure(
    statistic: Statistic, columns: dict[str, Values], protocol: str, seed: int = 0
) -> Measure:
    """Estimate a statistic with its 95 % interval: Wilson's for proportions, else bootstrap."""
    found = estimate(statistic, columns, seed)
    if statistic.proportion:
        interval = wilson(round(columns[statistic.of].sum()), found.n)
    else:
        low, high = (min(max(end, statistic.within[0]), statistic.within[1])
                     for end in found.interval())  # fmt: skip
        interval = low, high
    return Measure(found.value, interval, found.n, protocol)


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
    sums = resampled_sums(drawn, seed)
    before, after = (statistic.linked(_divided(sums[:, i], sums[:, 2])) for i in (0, 1))
    a, b = (float(statistic.linked(z.sum() / w.sum())) for z in (x, y))
    gains = (y - x) * (1 if statistic.better == "higher" else -1)
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    return Paired(
        difference=Bootstrap(b - a, after - before, n),
        relative=Bootstrap(float(_relative(np.float64(a), b)), _relative(before, after), n),
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


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927): honest at 0 and 1."""
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
