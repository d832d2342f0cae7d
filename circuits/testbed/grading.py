"""Grades scores of heads, MLPs, neurons and edges against a planted circuit."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core.errors import ExciseError
from ...core.families import ModelView
from ..graph import Graph
from .planted import Planted


def auroc(scores: Any, truth: Any) -> float:
    """Return the area under the ROC curve: how often a true item scores above a false one.

    Args:
        scores: Flat array of floats. Ties count half (Mann-Whitney).
        truth: Flat array of bools of the same length.

    Raises:
        ExciseError: Different shapes, a score that is not a number, or truth all or nothing.
    """
    values, true = _checked(scores, truth)
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[place]
    n, m = int(true.sum()), int((~true).sum())
    return float((ranks[true].sum() - n * (n + 1) / 2) / (n * m))


def recall_at_k(scores: Any, truth: Any) -> float:
    """Return the share of true items among the k highest scores, k the number of true items.

    Args:
        scores: Flat array of floats. Items tied at the border count by the share of them that
            still fits in, so that their order does not matter.
        truth: Flat array of bools of the same length.

    Raises:
        ExciseError: Different shapes, a score that is not a number, or truth all or nothing.
    """
    values, true = _checked(scores, truth)
    k = int(true.sum())
    border = values.sort(descending=True).values[k - 1]
    above, tied = values > border, values == border
    share = (k - above.sum()) / tied.sum()
    return float(((true & above).sum() + share * (true & tied).sum()) / k)


@dataclass(frozen=True)
class Marks:
    """How well scores find true items, from 0 to 1; chance is .5 and the share of true items."""

    auroc: float
    recall: float
    """At k = the number of true items."""


@dataclass(frozen=True)
class Grade:
    """Marks by kind; None for what was not scored."""

    heads: Marks | None = None
    mlps: Marks | None = None
    neurons: Marks | None = None
    edges: Marks | None = None
    backups: Marks | None = None
    """Backup heads against heads that are not in the circuit, by the scores of heads."""


def grade(
    planted: Planted,
    *,
    heads: Float[Tensor, "layers heads"] | None = None,
    mlps: Float[Tensor, " layers"] | None = None,
    neurons: Float[Tensor, "layers d_mlp"] | None = None,
    edges: Float[Tensor, "writers readers"] | None = None,
) -> Grade:
    """Grade scores by their absolute values.

    Backup heads count neither for nor against `heads`, nor do their edges for `edges`.

    Args:
        planted: Model and truth.
        heads: Scores of heads.
        mlps: Scores of MLPs.
        neurons: Scores of hidden units.
        edges: Scores in the order of `Graph.writers` and `Graph.readers`; pairs that are no edges
            may hold anything.

    Raises:
        ExciseError: A tensor of another shape, or a score that is not a number.
    """
    view = ModelView.of(planted.model)
    graph = Graph.of(view)
    n_layers, n_heads = graph.n_layers, graph.n_heads
    backups = _grid(planted.backups, (n_layers, n_heads))
    in_circuit = _grid(planted.heads, (n_layers, n_heads))
    found: dict[str, Marks] = {}
    if heads is not None:
        found["heads"] = _marks("heads", heads, in_circuit, ~backups)
        if planted.backups:
            found["backups"] = _marks("heads", heads, backups, ~in_circuit)
    if mlps is not None:
        truth = _grid([(layer,) for layer in planted.mlps], (n_layers,))
        found["mlps"] = _marks("mlps", mlps, truth)
    if neurons is not None:
        truth = _grid(planted.neurons, (n_layers, view.d_mlp))
        found["neurons"] = _marks("neurons", neurons, truth)
    if edges is not None:
        places = [(graph.writer_index[w], graph.reader_index[r]) for w, r in planted.edges]
        truth = _grid(places, (len(graph.writers), len(graph.readers)))
        found["edges"] = _marks("edges", edges, truth, graph.is_edge & ~_touching(planted, graph))
    return Grade(**found)


def _touching(planted: Planted, graph: Graph) -> Bool[Tensor, "writers readers"]:
    """Return which edges lead from or into a backup head."""
    rows = torch.zeros(len(graph.writers), dtype=torch.bool)
    rows[[graph.writer_index["head", layer, head] for layer, head in planted.backups]] = True
    return rows[:, None] | graph.feeds[:, rows].any(1)


def _grid(places: Collection[tuple[int, ...]], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    grid = torch.zeros(shape, dtype=torch.bool)
    for place in places:
        grid[place] = True
    return grid


def _marks(kind: str, scores: Tensor, truth: Tensor, counted: Tensor | None = None) -> Marks:
    if scores.shape != truth.shape:
        raise ExciseError(
            f"scores of {kind} have shape {tuple(scores.shape)}, and the model's are "
            f"{tuple(truth.shape)}: give one score for each"
        )
    counted = torch.ones_like(truth) if counted is None else counted
    flat = scores.detach().cpu().abs()[counted]
    return Marks(auroc(flat, truth[counted]), recall_at_k(flat, truth[counted]))


def _checked(scores: Any, truth: Any) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    values = torch.as_tensor(scores).detach().double().cpu()
    true = torch.as_tensor(truth).bool().cpu()
    if values.shape != true.shape or values.ndim != 1:
        raise ExciseError(
            f"scores {tuple(values.shape)} and truth {tuple(true.shape)} should be flat arrays of "
            "one length"
        )
    if bool(values.isnan().any()):
        raise ExciseError(f"{int(values.isnan().sum())} scores are no numbers: nothing to rank")
    if not 0 < int(true.sum()) < len(true):
        raise ExciseError(
            f"{int(true.sum())} of {len(true)} items are true: give some that are and some that "
            "are not"
        )
    return values, true
