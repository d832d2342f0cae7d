"""Two circuits beside each other: two tasks, a dense and a pruned model, or two methods."""

from dataclasses import dataclass
from typing import Any

import torch

from .circuit import Circuit


@dataclass(frozen=True)
class CircuitDiff:
    """What two circuits share and what they do not."""

    level: str
    sizes: tuple[int, int]
    common: int
    jaccard: float
    expected: float
    """Jaccard of two random choices of these sizes: what an overlap means nothing below."""
    rank_correlation: float | None
    """Spearman's, over all components; None where scores were not kept."""
    only_first: tuple[str, ...]
    """Names, by falling size of the score; empty for weights."""
    only_second: tuple[str, ...]
    faithfulness: tuple[float | None, float | None]

    def as_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


def compare_circuits(first: Circuit, second: Circuit) -> CircuitDiff:
    """Compare two circuits of one grain in models of one shape.

    Raises:
        ExciseError: Another grain or shape.
    """
    first.check_comparable(second)
    a, b = first.in_circuit, second.in_circuit
    n, (k, m) = len(a), (first.size, second.size)
    common = k * m / n
    level = first.level.name
    scored = level in first.scores and level in second.scores
    return CircuitDiff(
        level=level,
        sizes=(k, m),
        common=int((a & b).sum()),
        jaccard=first.jaccard(second),
        expected=common / (k + m - common) if k + m else 1.0,
        rank_correlation=_spearman(first, second) if scored else None,
        only_first=_names(first, a & ~b),
        only_second=_names(second, b & ~a),
        faithfulness=(_faithfulness(first), _faithfulness(second)),
    )


def _spearman(first: Circuit, second: Circuit) -> float | None:
    """Return the rank correlation of all scores; None where all of one circuit are equal."""
    from scipy.stats import spearmanr

    level = first.level.name
    one, two = (circuit.scores[level].mean.numpy() for circuit in (first, second))
    if not ((one != one[0]).any() and (two != two[0]).any()):
        return None
    found = spearmanr(one, two)
    return float(found.statistic)  # type: ignore[attr-defined]


def _names(circuit: Circuit, chosen: torch.Tensor) -> tuple[str, ...]:
    if circuit.level.name not in circuit.scores:
        return ()
    rows = [c for c, k in zip(circuit.components(), chosen.tolist(), strict=True) if k]
    return tuple(row.name for row in sorted(rows, key=lambda row: -abs(row.score)))


def _faithfulness(circuit: Circuit) -> float | None:
    found = circuit.config["metrics"].get("faithfulness")
    return found["value"] if found else None
