"""Statistics of what was measured: estimates and their intervals.

Everything here works on per-unit values, a unit being what was drawn independently: a prompt with
all its completions, a document, a window. Resampling whole units is what makes the intervals
honest when values within a unit belong together (Cameron, Gelbach and Miller 2008).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from .bootstrap import LEVEL, Bootstrap, Values, outer
from .effects import Resampled
from .errors import ExciseError


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """A measured value with its uncertainty and the protocol that gave it."""

    value: float
    ci: tuple[float, float]
    """95 % confidence interval; without ends where fewer than two units were measured."""
    n: int
    """Independent units behind it: windows, documents, prompts."""
    protocol: str

    def __str__(self) -> str:
        if self.n < 2:
            return short(self.value)
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
        return outer(quotient, self.link)


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
    units = np.stack([0 * x, x, w], 1)
    ratio = statistic.per is not None
    size = 0.0 if ratio or statistic.proportion else unseen(x - np.median(x), x)
    if size:
        units = np.concatenate([units, [[0, x.mean() + size, 1], [0, x.mean() - size, 1]]])
    found = Resampled(units, len(x), seed)
    value = float(statistic.linked(x.sum() / w.sum()))
    return found.effect("after", statistic.link == "exp", value)


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


def measure(
    statistic: Statistic, columns: dict[str, Values], protocol: str, seed: int = 0
) -> Measure:
    """Estimate a statistic with its 95 % interval: Wilson's for proportions, else bootstrap."""
    found = estimate(statistic, columns, seed)
    if statistic.proportion:
        interval = wilson(round(columns[statistic.of].sum()), found.n)
    else:
        interval = found.interval()
        if found.n > 1:  # else there is none, whatever the value can be
            low, high = (min(max(end, statistic.within[0]), statistic.within[1])
                         for end in interval)  # fmt: skip
            interval = low, high
    return Measure(found.value, interval, found.n, protocol)


def mean_interval(values: "Tensor", level: float = LEVEL) -> "tuple[Tensor, Tensor] | None":
    """Return Student's interval of the mean over the first dimension, for every column at once.

    None for fewer than two rows, of whose spread nothing is known.
    """
    n = len(values)
    if n < 2:
        return None
    mean, error = values.mean(0), values.std(0) / math.sqrt(n)
    half = float(stats.t.isf((1 - level) / 2, n - 1)) * error
    return mean - half, mean + half


def wilson(successes: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927): honest at 0 and 1."""
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
