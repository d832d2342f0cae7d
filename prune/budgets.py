"""How much of each matrix goes, where all together lose a given share."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..core.errors import ExciseError, unknown_name


Bounds = float | Mapping[str, float]
"""One sparsity for every matrix, or one for each by name."""


def outlier_ratio(scores: Tensor | Sequence[Tensor], m: float = 5.0) -> float:
    """Return the share of scores above m times their mean (Yin et al. 2023, OWL, 2310.05175).

    The paper takes Wanda scores, of all matrices of a decoder layer together.
    """
    parts = [scores] if isinstance(scores, Tensor) else list(scores)
    total = sum(part.numel() for part in parts)
    mean = sum(float(part.sum(dtype=torch.float64)) for part in parts) / total
    return sum(int((part > m * mean).sum()) for part in parts) / total


def owl_budgets(
    outlier_ratios: Mapping[str, float],
    sizes: Mapping[str, int],
    sparsity: float,
    lam: float = 0.08,
    floor: Bounds = 0.0,
    ceiling: Bounds = 1.0,
) -> dict[str, float]:
    """Return sparsities that fall as outliers rise (OWL, Yin et al. 2023, arXiv 2310.05175).

    Ratios are stretched to a range of `2 lam`, their mean becomes `1 - sparsity`, and they are what
    stays. The mean is weighted by size here (theirs is not, since all its layers are of one size).
    Any other share that should stay, such as that of one global mask, can take the ratios' place.

    Raises:
        ExciseError: Names that do not match, or bounds on the wrong side of the sparsity.
    """
    _same_names(outlier_ratios, sizes)
    lowest, highest = min(outlier_ratios.values()), max(outlier_ratios.values())
    stretch = 2 * lam / (highest - lowest) if highest > lowest else 0.0
    levels = {n: -stretch * (ratio - lowest) for n, ratio in outlier_ratios.items()}
    return _Budget(sizes, sparsity, floor, ceiling).level(levels)


class _Budget:
    """Sparsities within bounds, whose mean weighted by size is one number."""

    def __init__(self, sizes: Mapping[str, int], sparsity: float, floor: Bounds, ceiling: Bounds):
        self.sizes, self.goal = sizes, sparsity * sum(sizes.values())
        self.low = {name: bound_of(floor, name) for name in sizes}
        self.high = {name: bound_of(ceiling, name) for name in sizes}
        for name in sizes:
            low, high = self.low[name], self.high[name]
            if not 0.0 <= low <= high <= 1.0:
                raise ExciseError(f"{name}: bounds {low} and {high} are not in order from 0 to 1")
        least, most = (self._total(bound) / sum(sizes.values()) for bound in (self.low, self.high))
        if not least - 1e-9 <= sparsity <= most + 1e-9:
            raise ExciseError(f"the bounds allow {least:.4f} to {most:.4f}, not {sparsity}")

    def level(self, levels: Mapping[str, float]) -> dict[str, float]:
        """Return `levels + t` cut at the bounds, with the t that meets the mean.

        The total is linear in t between the points where a matrix meets a bound, so it is solved
        for exactly.
        """

        def at(t: float) -> dict[str, float]:
            moved = {n: levels[n] + t for n in self.sizes}
            return {n: min(max(v, self.low[n]), self.high[n]) for n, v in moved.items()}

        stops = sorted(end[n] - levels[n] for n in self.sizes for end in (self.low, self.high))
        after = bisect_left(stops, self.goal, key=lambda t: self._total(at(t)))
        if after == 0 or after == len(stops):
            return at(stops[after - 1 if after else 0])
        left, right = stops[after - 1], stops[after]
        below, above = self._total(at(left)), self._total(at(right))
        return at(left + (self.goal - below) / (above - below) * (right - left))

    def _total(self, sparsities: Mapping[str, float]) -> float:
        return math.fsum(self.sizes[name] * sparsities[name] for name in self.sizes)


def bound_of(bounds: Bounds, name: str) -> float:
    """Return the bound of one matrix.

    Raises:
        ExciseError: Bounds by name that lack it.
    """
    if isinstance(bounds, Mapping):
        if name not in bounds:
            raise unknown_name("matrix in bounds:", name, bounds)
        return bounds[name]
    return bounds


def _same_names(given: Mapping[str, object], sizes: Mapping[str, int]) -> None:
    if not sizes or given.keys() != sizes.keys():
        odd = sorted(given.keys() ^ sizes.keys())[:3]
        raise ExciseError(f"values and sizes are of different matrices: {', '.join(odd) or 'none'}")
