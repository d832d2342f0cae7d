"""How far to damp each unit: most benefit for a given rise of the loss on general text.

Taking units one by one by benefit over cost knows nothing of what they do together. Here the rise
of the loss is a quadratic form in how far each unit is damped, and the best damping is a small
quadratic programme. Its answer is a prediction of first and second order: measure what it did.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import ExciseError
from ..edits.edit import Edit
from .data.behaviour import BehaviourSet
from .ranking.contrast import Contrast
from .ranking.sources import SEEDS, relevances


Vector = Float[Tensor, " units"]
Sums = Float[Tensor, "samples units"]
"""Per sample: the sum over its tokens of activation times gradient of the log-probability."""


def predicted_rise(
    damped: Vector, sums: Sums, tokens: int, shrinkage: float = 0.5
) -> Float[Tensor, ""]:
    """Predict how much the loss per token rises when units are damped.

    `r d + d F d / 2`: `r` is the mean over tokens of activation times gradient, which is what the
    log-probability loses first; `F` is the empirical Fisher information of the units' factors.

    Args:
        damped: By how much: 0 leaves a unit alone, 1 removes it, more turns its sign.
        sums: Of general text.
        tokens: In each sample.
        shrinkage: Share of `F` that is taken from its diagonal alone: few samples say little of
            how units act together.
    """
    n = len(sums) * tokens
    joint = (sums @ damped).square().sum() / n
    alone = (sums.square().sum(0) / n) @ damped.square()
    first = (sums.sum(0) / n) @ damped
    return first + ((1 - shrinkage) * joint + shrinkage * alone) / 2


def best_damping(
    benefit: Vector,
    sums: Sums,
    tokens: int,
    price: float,
    most: float = 1.0,
    shrinkage: float = 0.5,
    steps: int = 300,
) -> Vector:
    """Maximise `benefit d - price * predicted_rise(d)` over `0 <= d <= most`.

    Accelerated projected gradient (Beck and Teboulle 2009); the problem is convex.

    Args:
        benefit: Of removing each unit.
        sums: Of general text.
        tokens: In each sample.
        price: What a nat of loss per token costs, in units of benefit.
        most: How far a unit may be damped: 1 is removal.
        shrinkage: As in `predicted_rise`.
        steps: Of the descent.
    """
    n = len(sums) * tokens
    diagonal = sums.square().sum(0) / n
    first = sums.sum(0) / n
    joint = torch.linalg.matrix_norm(sums, 2).square() / n
    curvature = price * ((1 - shrinkage) * joint + shrinkage * diagonal.max())
    step = 1 / curvature.clamp_min(1e-30)
    now = torch.zeros_like(benefit)
    ahead, momentum = now, 1.0
    for _ in range(steps):
        pull = (1 - shrinkage) * (sums.T @ (sums @ ahead)) / n + shrinkage * diagonal * ahead
        after = (ahead + step * (benefit - price * (first + pull))).clamp(0, most)
        faster = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = after + (momentum - 1) / faster * (after - now)
        now, momentum = after, faster
    return now


def damping_within(
    benefit: Vector,
    sums: Sums,
    tokens: int,
    budget: float,
    most: float = 1.0,
    shrinkage: float = 0.5,
) -> Vector:
    """Return the best damping whose predicted rise is within a budget.

    Args:
        benefit: Of removing each unit; only positive ones are damped.
        sums: Of general text.
        tokens: In each sample.
        budget: Rise of the loss, in nats per token.
        most: How far a unit may be damped.
        shrinkage: As in `predicted_rise`.

    Raises:
        ExciseError: The budget is not positive, or no unit has a benefit.
    """
    if not budget > 0:
        raise ExciseError(f"budget is {budget}: give a rise of the loss above 0")
    useful = (benefit > 0).nonzero()[:, 0]
    if not len(useful):
        raise ExciseError("no unit has a benefit: give more samples, or another contrast")
    result, sums = torch.zeros_like(benefit), sums[:, useful]
    benefit = benefit[useful] / benefit.max()
    low, high = 1e-4, 1e8  # a higher price damps less
    for _ in range(24):
        price = (low * high) ** 0.5
        found = best_damping(benefit, sums, tokens, price, most, shrinkage, steps=100)
        spent = float(predicted_rise(found, sums, tokens, shrinkage))
        low, high = (price, high) if spent > budget else (low, price)
    found = best_damping(benefit, sums, tokens, high, most, shrinkage)
    return result.index_copy_(0, useful, torch.where(found > 1e-3, found, 0.0))


def damped_edit(
    model: Any,
    behaviour: BehaviourSet,
    contrast: Contrast,
    budget: float,
    k: int = 300,
    *,
    candidates: int = 2000,
    most: float = 1.0,
    shrinkage: float = 0.5,
    batch_size: int = 8,
    progress: bool = False,
) -> Edit:
    """Make an edit that damps units as far as is worth it.

    Args:
        model: The one that was contrasted.
        behaviour: Its `reference` samples are what is kept; the more, the better the prediction.
        contrast: With benefits (`lrp`, `gradient`); protected units are left alone.
        budget: Predicted rise of the loss on general text, in nats per token.
        k: How many units at most.
        candidates: The first units of the contrast that are considered.
        most: How far a unit may be damped: 1 is removal, more turns its sign.
        shrinkage: As in `predicted_rise`.
        batch_size: Samples per pass.
        progress: Whether to draw a progress bar on a terminal.

    Raises:
        ExciseError: A contrast without benefits, no unit with one, or a bad budget.
    """
    if contrast.benefit is None:
        raise ExciseError(
            f"contrast {contrast.config.get('method')!r} says nothing of benefits: use 'lrp' or "
            "'gradient'"
        )
    free = int((~contrast.protected).sum())
    units = contrast.top(min(candidates, free))
    layers, columns = torch.tensor(units).T
    reference = behaviour.reference
    per_token = relevances(
        model, reference, contrast.component, "gradient-x-activation", SEEDS["logprob"],
        batch_size, progress,
    )[:, layers, columns]  # fmt: skip
    lengths = torch.tensor([sample.continuation for sample in reference])
    sums, tokens = per_token * lengths[:, None], round(lengths.double().mean().item())
    benefit = contrast.benefit[layers, columns]
    damped = damping_within(benefit, sums, tokens, budget, most, shrinkage)
    kept = (damped * benefit).topk(min(k, int((damped > 0).sum()))).indices
    if len(kept) < int((damped > 0).sum()):  # fewer units: what the others took is free to spend
        again = damping_within(benefit[kept], sums[:, kept], tokens, budget, most, shrinkage)
        damped = torch.zeros_like(damped).index_copy_(0, kept, again)
    scaled = {units[i]: 1 - float(damped[i]) for i in damped.nonzero()[:, 0].tolist()}
    return Edit.of_units(contrast.component, scaled)
