"""Damage that so few units show that a sample may hold none of them.

No interval knows of it, as nothing in the sample speaks of it: of 30 units drawn where 3 % are hit,
none is hit in 40 % of samples. What can be said is how large a share of units can have been
missed, and how far these may be off at most, where values end somewhere (a score from 0 to 1).
"""

import math

import numpy as np

from ..core.statistics import Statistic, Values
from .policy import Rule


def units_needed(share: float, confidence: float) -> int:
    """Return how many units hold one of a kind that is this share of all, with confidence."""
    return 1 if share >= 1 else math.ceil(math.log(1 - confidence) / math.log(1 - share))


def share_missed(n: int, confidence: float) -> float:
    """Return how large a share of all units n may hold none of, at a confidence."""
    return 1 - (1 - confidence) ** (1 / n)


def hidden(statistic: Statistic, columns: dict[str, Values], rule: Rule) -> tuple[float, float]:
    """Return how much lower and higher the value may be by units of a kind that was not drawn.

    Args:
        statistic: What is decided on.
        columns: Of the model that is decided on.
        rule: Says which share of units may be damaged unnoticed, as a policy's `rare`.

    Returns:
        0 where enough units were measured to see that share, and for proportions, whose tests and
        intervals count what was not seen; infinite where the value has no end.
    """
    above, below = statistic.quotient(columns)
    if statistic.proportion or len(above) >= units_needed(rule.rare, rule.confidence):
        return 0.0, 0.0
    share, found = share_missed(len(above), rule.confidence), above.sum() / below.sum()
    ends = statistic.within
    with np.errstate(divide="ignore"):
        ends = np.log(np.maximum(ends, 0)) if statistic.link == "exp" else np.array(ends)
    value, shifted = statistic.linked(found), statistic.linked(found + share * (ends - found))
    if math.isinf(ends[1]):  # a link may end where the scale does not
        shifted[1] = math.inf
    return float(value - shifted[0]), float(shifted[1] - value)


def told(missed: tuple[float, float], n: int, rule: Rule) -> str:
    """Say what so few units may hide and what to do; nothing where `hidden` found nothing."""
    if not any(missed):
        return ""
    share, enough = share_missed(n, rule.confidence), units_needed(rule.rare, rule.confidence)
    return (
        f"{n} units may hold none of a kind that is {100 * share:.2g} % of all: measure {enough}, "
        f"or let the policy allow that (rare: {math.ceil(100 * share)} %)"
    )
