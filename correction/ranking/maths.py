"""Contrasts of two sets of per-sample scores, as pure functions of tensors."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


Samples = Float[Tensor, "samples layers units"]
Scores = Float[Tensor, "layers units"]


def difference(undesired: Samples, general: Samples, paired: bool) -> tuple[Scores, Scores]:
    """Return the mean of undesired less general scores, and its standard error.

    Of pairs, differences are taken first, so that what two sides share leaves no noise. With one
    sample the error is not known, and is 0.
    """
    if paired:
        return mean_and_error(undesired - general)
    (first, one), (second, two) = mean_and_error(undesired), mean_and_error(general)
    return first - second, (one.square() + two.square()).sqrt()


def mean_and_error(values: Samples) -> tuple[Scores, Scores]:
    """Return the mean over samples and its standard error."""
    mean = values.mean(0)
    if len(values) < 2:
        return mean, torch.zeros_like(mean)
    return mean, values.std(0) / len(values) ** 0.5


def root_mean_square(values: Samples) -> Scores:
    """Return the root of the mean square over samples: what scaling a unit does to them, in size.

    Of per-sample gradients of a log-probability its square is the empirical Fisher information of
    the unit's factor.
    """
    return values.square().mean(0).sqrt()


def benefit_per_cost(benefit: Scores, cost: Scores, c: float) -> Scores:
    """Return `benefit / (cost + c median(cost))`.

    The median keeps units from the top that do nothing for either set; where it is 0, and so is a
    unit's cost, its benefit is divided by the largest cost.
    """
    floor = cost + c * cost.median()
    return benefit / torch.where(floor > 0, floor, cost.max().clamp_min(1e-30))


def auroc(undesired: Samples, general: Samples) -> Scores:
    """Return how well each unit tells the two sets apart: 0.5 is chance, 1 is always higher.

    The probability that an undesired sample is above a general one, ties counted half.
    """
    n, m = len(undesired), len(general)
    both = torch.cat([undesired, general])
    ordered, order = both.sort(dim=0)
    ranks = torch.arange(1, n + m + 1, dtype=both.dtype).view(-1, 1, 1).expand_as(both)
    ranks = torch.empty_like(both).scatter_(0, order, _shared(ordered, ranks))
    return (ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m)


def _shared(ordered: Samples, ranks: Samples) -> Samples:
    """Give equal neighbours of a sorted tensor the mean of their ranks."""
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    group = new.cumsum(0) - 1
    total = torch.zeros_like(ordered).scatter_add_(0, group, ranks)
    size = torch.zeros_like(ordered).scatter_add_(0, group, torch.ones_like(ordered))
    return (total / size.clamp_min(1)).gather(0, group)


def top_units(scores: Scores, k: int, protected: Tensor | None = None) -> list[tuple[int, int]]:
    """Return the k highest units that are not protected, as (layer, unit), highest first.

    Args:
        scores: Of units.
        k: How many; fewer come back where fewer are left.
        protected: bool (layers, units).
    """
    flat = scores.flatten()
    if protected is not None:
        flat = flat.masked_fill(protected.flatten(), -torch.inf)
    values, order = flat.topk(min(k, flat.numel()))
    width = scores.shape[1]
    return [
        (i // width, i % width)
        for i, value in zip(order.tolist(), values.tolist(), strict=True)
        if value > -torch.inf
    ]


def ranking_stability(
    undesired: Samples,
    general: Samples,
    paired: bool,
    rank: Callable[[Samples, Samples], Scores],
    k: int,
    draws: int = 20,
    seed: int = 0,
) -> float:
    """Say how much of the top k stays when samples are drawn again.

    Args:
        undesired: Per-sample scores.
        general: Likewise.
        paired: Whether rows belong together, and are drawn together.
        rank: Scores of units from two sets of samples.
        k: How many units are taken.
        draws: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        Mean Jaccard index of the top k over all pairs of resamples; 1 is always the same set.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(n: int) -> Tensor:
        return torch.randint(n, (n,), generator=generator)

    tops = []
    for _ in range(draws):
        first = drawn(len(undesired))
        second = first if paired else drawn(len(general))
        tops.append(set(top_units(rank(undesired[first], general[second]), k)))
    pairs = [(a, b) for i, a in enumerate(tops) for b in tops[:i]]
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs)
