"""What is resampled: a value, a difference or a relative change, with its standard errors."""

import math
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped

from .bootstrap import Bootstrap, Link, Ratio, Studentised, Values, outer, resampled_sums
from .errors import ExciseError


Units = Float[np.ndarray, "n 3"]
"""Of each unit the numerator before, the numerator after, and the denominator."""

Kind = Literal["after", "difference", "relative"]
Slopes = tuple[Any, Any]
"""Derivatives of an effect by the quotients before and after."""


class Resampled:
    """Units drawn again and again, and what the quotients of two models say about one another.

    Args:
        units: What is resampled: the units, and those added for what was not seen.
        n: Units behind it, without those added.
        seed: Of the resampling.

    Raises:
        ExciseError: A bootstrap sample measures nothing.
    """

    def __init__(self, units: Units, n: int, seed: int):
        before, after, per = units.T
        self.size, self.n, self.total = len(units), n, per.sum()
        sums = np.zeros((1, 1))
        if self.total:
            self.a, self.b = before.sum() / self.total, after.sum() / self.total
            # residuals: their squares keep their digits where the two models hardly differ
            u, d = before - self.a * per, after - before - (self.b - self.a) * per
            self.parts = u, d
            products = [u * u, d * d, per * per, u * d, u * per, d * per]
            sums = resampled_sums(np.stack([per, u, d, *products], 1), seed)
        self.per = sums[:, 0]
        if not self.per.all():
            raise ExciseError("a bootstrap sample measures nothing: too many units are empty")
        self.alpha, self.delta = (sums[:, i] / self.per for i in (1, 2))
        self.squares = sums[:, 3:].T

    def effect(self, kind: Kind, exp: bool, value: float) -> Bootstrap:
        """Return the estimate of an effect.

        Args:
            kind: The quotient after, or how it differs from that before, absolutely or relatively.
            exp: Whether a model's value is the exponential of its quotient.
            value: The effect in the units alone.
        """
        link: Link = "mean"
        if exp and kind != "difference":
            link = "expm1" if kind == "relative" else "exp"
        with np.errstate(all="ignore"):
            a, b = self.a + self.alpha, self.b + self.alpha + self.delta
            drawn, slopes = _effect(kind, exp, a, b)
            centre, here = _effect(kind, exp, self.a, self.b)
            if kind == "relative" and not exp and self.a:
                return Bootstrap(value, drawn, self.n, ratio=Ratio(float(centre), self._contrast))
            found = self._studentised(drawn, slopes, float(centre), here, link)
        return Bootstrap(value, outer(drawn, link), self.n, found)

    def _contrast(self, r: float) -> Bootstrap:
        """Return the mean of 'after less (1 + r) before' (less (1 - r) where before is below 0)."""
        share = 1 + r * math.copysign(1, self.a)
        centre = self.b - share * self.a
        drawn = centre + self.alpha + self.delta - share * self.alpha
        slopes = -share, 1.0
        found = self._studentised(drawn, slopes, float(centre), slopes, "mean")
        return Bootstrap(float(centre), drawn, self.n, found)

    def _studentised(
        self, drawn: Any, slopes: Slopes, centre: float, here: Slopes, link: Link
    ) -> Studentised | None:
        """Return an effect in its standard errors; None where it has none."""
        u, d = self.parts
        parts = ((here[0] + here[1]) * u + here[1] * d) * np.sign(self.total)
        error = math.sqrt((parts**2).sum()) / abs(self.total)
        if not math.isfinite(error) or not math.isfinite(centre) or self.size < 2:
            return None
        pivots = 0 * drawn
        if error:  # units that happen to be alike are not as sure as they look
            pivots = (drawn - centre) / np.maximum(self._errors(slopes), error / self.size)
        correction = math.sqrt(self.size / (self.size - 1))
        return Studentised(centre, error * correction, pivots / correction, _skew(parts), link)

    def _errors(self, slopes: Slopes) -> Shaped[np.ndarray, " resamples"]:
        """Return the standard error of each resampled effect by its derivatives (delta method).

        A unit adds `h = s u + f d - c w` to it, whose sum over the resample is 0.
        """
        s, f = slopes[0] + slopes[1], slopes[1]
        c = s * self.alpha + f * self.delta
        uu, dd, ww, ud, uw, dw = self.squares
        square = s * s * uu + f * f * dd + c * c * ww
        square += 2 * (s * f * ud - s * c * uw - f * c * dw)
        return np.sqrt(np.maximum(square, 0.0)) / np.abs(self.per)


def _effect(kind: Kind, exp: bool, a: Any, b: Any) -> tuple[Any, Slopes]:
    """Return an effect of the quotients a and b, and its derivatives by each.

    On the scale of logarithms where values are exponentials, but for their difference.
    """
    one = np.ones_like(b)
    if kind == "after":
        return b, (0 * one, one)
    if exp and kind == "difference":
        before, after = outer(a, "exp"), outer(b, "exp")
        return after - before, (-before, after)
    if exp or kind == "difference":
        return b - a, (-one, one)
    size = np.abs(a)
    found = np.where(a == b, 0.0, (b - a) / size)
    return found, (-b * np.sign(a) / size**2, 1 / size)


def _skew(parts: Values) -> float:
    """Return the skewness of a sample, unbiased for normal ones, over the root of its size."""
    n, square = len(parts), (parts**2).mean()
    if n < 3 or not square:
        return 0.0
    found = (parts**3).mean() / square**1.5 * math.sqrt(n * (n - 1)) / (n - 2)
    return float(found / math.sqrt(n))
