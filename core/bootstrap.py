"""The bootstrap behind every interval and every decision, studentised so that it holds under skew.

Percentile intervals are as wide to either side as the sample is, and a skewed sample that holds
no extreme unit says that there are none: upper bounds of lognormal damage missed the truth in
16 % of samples of 16, at nominal 5 %. The bootstrap-t (Efron 1981; Hall 1988) resamples how far an
estimate lies from the truth *in its own standard errors*, and so knows that samples without
extreme units are too sure of themselves.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy import stats


LEVEL = 0.95
"""Confidence of every interval unless said otherwise."""

RESAMPLES = 4000

CAUTION = 4.0
"""How much rarer a tail is taken where units are few and skewed towards it: by the factor
`exp(-CAUTION * skewness / sqrt(n))`. Chosen on simulations, confirmed on others: see
`benchmarks/statistics_simulation.py`."""

Values = Float[np.ndarray, " n"]
Link = Literal["mean", "exp", "expm1"]


def outer(inner: Any, link: Link) -> Any:
    """Apply a link to a value or an array; a broken model is 1e304, not infinite."""
    if link == "mean":
        return inner
    return (np.exp if link == "exp" else np.expm1)(np.minimum(inner, 700.0))


@dataclass(frozen=True)
class Studentised:
    """What the bootstrap-t needs, on the scale `link` leads back from."""

    centre: float
    error: float
    pivots: Shaped[np.ndarray, " resamples"]
    """Resampled estimates less the centre, each in its own standard errors; NaN where none."""
    skew: float
    """Skewness of what the units add to the estimate, over the root of their number."""
    link: Link

    def outer(self, inner: float) -> float:
        """Lead back from the scale of the centre."""
        return float(outer(inner, self.link))

    def inner(self, outer: float) -> float:
        """Lead to the scale of the centre."""
        if self.link == "mean":
            return outer
        shifted = outer if self.link == "exp" else 1 + outer
        return math.log(shifted) if shifted > 0 else -math.inf


@dataclass(frozen=True)
class Bootstrap:
    """Resampled values of an estimate, and what they say about it.

    Bounds are those of the bootstrap-t, never nearer than Student's; where an estimate has no
    standard error (a ratio to nothing, a broken model) those of the expanded percentile
    bootstrap (Hesterberg 2015, section 6.3).
    """

    value: float
    resampled: Shaped[np.ndarray, " resamples"]
    n: int
    studentised: Studentised | None = None
    ratio: "Ratio | None" = None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the two-sided interval at a confidence level."""
        tail = (1 - level) / 2
        return self.bound(tail), self.bound(1 - tail)

    def bound(self, probability: float) -> float:
        """Return the value that the truth lies below with this probability."""
        if self.n < 2:
            return -math.inf if probability < 0.5 else math.inf
        if self.ratio is not None:
            return self.ratio.bound(probability)
        found = self.studentised
        if found is None:
            wide = math.sqrt(self.n / (self.n - 1)) * stats.t.ppf(probability, self.n - 1)
            # no interpolation: a resampled ratio can be infinite
            share = stats.norm.cdf(wide)
            return float(np.quantile(self.resampled, share, method="inverted_cdf"))
        if not found.error:
            return found.outer(found.centre)
        side = -1 if probability < 0.5 else 1
        tail = probability if side < 0 else 1 - probability
        pivots = self._against(side)
        rare = tail / self._caution(side)
        far = float(np.quantile(pivots, 1 - rare, method="inverted_cdf"))
        far = max(far, float(stats.t.isf(tail, self.n - 1)))
        return found.outer(found.centre + side * far * found.error)

    def p_below(self, threshold: float) -> float:
        """Return the p value of 'the truth is at most the threshold': small where it is above.

        The inverse of `bound`, so a p value below 0.05 and a 95 % bound above the threshold are
        the same statement.
        """
        return self._p(threshold, -1)

    def p_above(self, threshold: float) -> float:
        """Return the p value of 'the truth is at least the threshold': small where it is below."""
        return self._p(threshold, 1)

    def _p(self, threshold: float, side: int) -> float:
        """Return how likely an estimate is this far on the other side of the threshold."""
        if self.n < 2:
            return 1.0
        if self.ratio is not None:
            return self.ratio.p(threshold, side)
        found = self.studentised
        if found is None:
            share = _share(-side * self.resampled, -side * threshold)
            narrow = stats.norm.ppf(share) * math.sqrt((self.n - 1) / self.n)
            return float(stats.t.cdf(narrow, self.n - 1))
        distance = side * (found.inner(threshold) - found.centre)
        if not found.error:
            return 0.5 / (len(found.pivots) + 1) if distance > 0 else 1.0
        away = distance / found.error
        seen = _share(-self._against(side), -away) * self._caution(side)
        return min(1.0, max(seen, float(stats.t.sf(away, self.n - 1))))

    def _against(self, side: int) -> Shaped[np.ndarray, " resamples"]:
        """Return how far resampled estimates fall short of (side 1) or exceed the centre."""
        assert self.studentised is not None
        pivots = -side * self.studentised.pivots
        return np.where(np.isnan(pivots), math.inf, pivots)

    def _caution(self, side: int) -> float:
        assert self.studentised is not None
        return math.exp(CAUTION * max(0.0, side * self.studentised.skew))


@dataclass(frozen=True)
class Ratio:
    """A relative change, by what need not be divided (Fieller 1954).

    It is above r where the mean of 'after less (1 + r) before' is above 0. So a ratio to something
    that is hardly more than nothing has bounds without ends, and not those of a normal quotient.
    """

    centre: float
    contrast: Callable[[float], Bootstrap]
    """By r, the mean of which the sign decides."""

    def p(self, threshold: float, side: int) -> float:
        """Return the p value as `Bootstrap.p_above` (side 1) and `p_below` (side -1) do."""
        if math.isinf(threshold):
            return 1.0 if threshold * side < 0 else 0.0
        found = self.contrast(threshold)
        return found.p_above(0.0) if side > 0 else found.p_below(0.0)

    def bound(self, probability: float, most: float = 1e9, steps: int = 40) -> float:
        """Find the threshold whose p value is the tail: doubling, then bisection."""
        side = -1 if probability < 0.5 else 1
        tail = probability if side < 0 else 1 - probability
        inside, step = self.centre, 0.01
        while self.p(outside := self.centre + side * step, side) > tail:
            inside, step = outside, 2 * step
            if step > most:
                return side * math.inf
        for _ in range(steps):
            middle = (inside + outside) / 2
            if self.p(middle, side) > tail:
                inside = middle
            else:
                outside = middle
        return outside


def _share(values: Shaped[np.ndarray, " resamples"], threshold: float) -> float:
    """Return the share of values below a threshold, ties half; never 0 or 1."""
    count = np.sum(values < threshold) + 0.5 * np.sum(values == threshold)
    return float((count + 0.5) / (len(values) + 1))


def resampled_sums(
    values: Float[np.ndarray, "n columns"], seed: int, resamples: int = RESAMPLES
) -> Float[np.ndarray, "resamples columns"]:
    """Sum columns over bootstrap samples of the rows, the same rows for every column."""
    blocks = [
        counts.astype(values.dtype) @ values for counts in _drawn(len(values), seed, resamples)
    ]
    return np.concatenate(blocks)


def _drawn(n: int, seed: int, resamples: int) -> Iterator[Int[np.ndarray, "block n"]]:
    """Yield how often each of n units is in each bootstrap sample."""
    draw = np.random.default_rng(seed)
    block = max(1, 30_000 // n)  # drawn at once: few enough for the cache
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        rows = draw.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n)
