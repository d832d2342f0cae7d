"""At which grain a circuit is looked for: heads and MLPs, hidden neurons, or edges."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import look_up, unknown_name
from ..core.families import ModelView
from .ablation import Kept, select_nodes
from .graph import Graph, edge_name, name
from .patching import expand
from .scores import Attribution


RANKS = ("signed", "abs")


@dataclass(frozen=True)
class Level:
    """One grain: components in a fixed order, so that a choice of them is a flat array."""

    name: str
    summary: str
    scores: Callable[["Shape", Attribution], Tensor | None]
    """Per-sample scores, (samples, components); None if they were not asked for."""
    kept: Callable[["Shape", Bool[Tensor, " components"]], Kept]
    """What a run keeps when these components are chosen."""
    flat: Callable[["Shape", Kept], Tensor]
    """The same the other way round, for choices and for numbers in their place."""
    count: Callable[["Shape"], int]
    groups: Callable[["Shape"], Tensor]
    """A number for each component; components of one number are alike in kind and layer."""
    names: Callable[["Shape"], list[str]]
    tidy: Callable[["Shape", Bool[Tensor, " components"]], Bool[Tensor, " components"]] = (
        lambda _shape, chosen: chosen
    )
    """Drops what is chosen to no effect, such as edges that lead nowhere."""


@dataclass(frozen=True)
class Shape:
    """The numbers that say how many components there are."""

    graph: Graph
    d_mlp: int
    matrices: tuple[tuple[str, int], ...] = ()
    """Names of the layers' weight matrices and how many elements each has."""

    @classmethod
    def of(cls, view: ModelView) -> "Shape":
        """Return the shape of a live model."""
        linears = view.layer_linears().items()
        sizes = tuple((f"{path}.weight", linear.weight.numel()) for path, linear in linears)
        return cls(Graph.of(view), view.d_mlp, sizes)


def _flat(scores: Tensor | None) -> Tensor | None:
    return None if scores is None else scores.flatten(1)


def _nodes(shape: Shape, chosen: Tensor) -> Kept:
    return select_nodes(chosen, shape.graph.n_layers, shape.graph.n_heads)


def _given(choice: Tensor | None) -> Tensor:
    assert choice is not None
    return choice


def _flat_nodes(kept: Kept) -> Tensor:
    """Lay out heads and MLPs by layer; numbers of gates as well as choices."""
    return torch.cat([_given(kept.heads), _given(kept.mlps)[:, None]], 1).flatten()


def _kinds_by_layer(shape: Shape, units: int) -> Tensor:
    """Number attention units and the MLP of each layer: 2 l for the units, 2 l + 1 for the MLP."""
    layers = torch.arange(shape.graph.n_layers)[:, None]
    kinds = torch.zeros(1, units + 1, dtype=torch.long)
    kinds[:, -1] = 1
    return (2 * layers + kinds).flatten()


def _by_group(shape: Shape, heads: Tensor | None) -> Tensor | None:
    return None if heads is None else heads.unflatten(2, (shape.graph.n_kv_heads, -1)).sum(-1)


def _with_mlps(units: Tensor | None, found: Attribution) -> Tensor | None:
    if units is None or found.mlps is None:
        return None
    return torch.cat([units, found.mlps[..., None]], 2).flatten(1)


def _kv_groups(shape: Shape, chosen: Tensor) -> Kept:
    grid = chosen.view(shape.graph.n_layers, -1)
    heads = grid[:, :-1].repeat_interleave(shape.graph.group_size, 1)
    return Kept(heads=heads, mlps=grid[:, -1])


def _weight_groups(shape: Shape) -> Tensor:
    sizes = torch.tensor([n for _, n in shape.matrices])
    return torch.arange(len(sizes), dtype=torch.int16).repeat_interleave(sizes)


def _edge_groups(shape: Shape) -> Tensor:
    """Edges are alike that lead from the same kind of writer to the same kind and layer."""
    graph = shape.graph
    kinds = {"embed": 0, "head": 1, "mlp": 2, "q": 0, "k": 1, "v": 2, "logits": 4}
    writers = torch.tensor([kinds[writer[0]] for writer in graph.writers])
    readers = torch.tensor([
        8 * (graph.n_layers if reader[0] == "logits" else reader[1]) + kinds.get(reader[0], 3)
        for reader in graph.readers
    ])  # fmt: skip
    return (readers[None, :] * 3 + writers[:, None])[graph.is_edge]


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level(
            "nodes",
            "attention heads and MLPs",
            lambda _shape, found: _with_mlps(found.heads, found),
            _nodes,
            lambda _shape, kept: _flat_nodes(kept),
            lambda shape: shape.graph.n_layers * (shape.graph.n_heads + 1),
            lambda shape: _kinds_by_layer(shape, shape.graph.n_heads),
            lambda shape: [name(writer) for writer in shape.graph.writers[1:]],
        ),
        Level(
            "kv-groups",
            "KV groups, all heads of one together, and MLPs",
            lambda shape, found: _with_mlps(_by_group(shape, found.heads), found),
            _kv_groups,
            lambda shape, kept: (
                _flat_nodes(kept)
                .view(shape.graph.n_layers, -1)[
                    :, [*range(0, shape.graph.n_heads, shape.graph.group_size), -1]
                ]
                .flatten()
            ),
            lambda shape: shape.graph.n_layers * (shape.graph.n_kv_heads + 1),
            lambda shape: _kinds_by_layer(shape, shape.graph.n_kv_heads),
            lambda shape: [
                f"m{layer}" if unit == shape.graph.n_kv_heads else f"a{layer}.g{unit}"
                for layer in range(shape.graph.n_layers)
                for unit in range(shape.graph.n_kv_heads + 1)
            ],
        ),
        Level(
            "neurons",
            "hidden units of the MLPs",
            lambda _shape, found: _flat(found.neurons),
            lambda shape, chosen: Kept(neurons=chosen.view(shape.graph.n_layers, shape.d_mlp)),
            lambda _shape, kept: _given(kept.neurons).flatten(),
            lambda shape: shape.graph.n_layers * shape.d_mlp,
            lambda shape: torch.arange(shape.graph.n_layers).repeat_interleave(shape.d_mlp),
            lambda shape: [
                f"m{layer}.n{unit}"
                for layer in range(shape.graph.n_layers)
                for unit in range(shape.d_mlp)
            ],
        ),
        Level(
            "edges",
            "every writer to every reader",
            lambda _shape, found: found.edges,
            lambda shape, chosen: Kept(edges=expand(shape.graph, chosen)),
            lambda shape, kept: _given(kept.edges)[shape.graph.is_edge],
            lambda shape: shape.graph.n_edges,
            _edge_groups,
            lambda shape: [edge_name(e) for e in shape.graph.edges(shape.graph.is_edge)],
            lambda shape, chosen: shape.graph.connected(expand(shape.graph, chosen))[
                shape.graph.is_edge
            ],
        ),
        Level(
            "weights",
            "elements of the layers' weight matrices; zero ablation only",
            lambda _shape, _found: None,
            lambda _shape, chosen: Kept(weights=chosen),
            lambda _shape, kept: _given(kept.weights),
            lambda shape: sum(n for _, n in shape.matrices),
            _weight_groups,
            lambda shape: [f"{name}[{i}]" for name, n in shape.matrices for i in range(n)],
        ),
    )
}
"""Every grain by name; the command line and the tests read this table."""


def get_level(level: str) -> Level:
    """Return a grain by name.

    Raises:
        ExciseError: No grain has this name.
    """
    return look_up("level", level, LEVELS)


class Ranking:
    """Components in the order of their scores, sorted once, so that any number can be taken.

    Args:
        scores: Of all components.
        rank: `signed`, or `abs`: by size.
    """

    def __init__(self, scores: Float[Tensor, " components"], rank: str = "signed"):
        if rank not in RANKS:
            raise unknown_name("rank", rank, RANKS)
        self.values = scores.abs() if rank == "abs" else scores
        self._sorted = np.sort(self.values.numpy())

    def __len__(self) -> int:
        return len(self.values)

    def top(self, k: int) -> Bool[Tensor, " components"]:
        """Choose the k highest; of equal scores, the first."""
        if k <= 0:
            return torch.zeros(len(self), dtype=torch.bool)
        threshold = float(self._sorted[-min(k, len(self))])
        chosen = self.values > threshold
        ties = (self.values == threshold).nonzero()[:, 0]
        chosen[ties[: k - int(chosen.sum())]] = True
        return chosen


def matched_random(
    chosen: Bool[Tensor, " components"], groups: Tensor, seed: int
) -> Bool[Tensor, " components"]:
    """Draw as many components of each kind and layer as are chosen: the control."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.zeros_like(chosen)
    order = groups.argsort(stable=True)  # each group's members side by side
    _, sizes = groups.unique(return_counts=True)
    for members in order.split(sizes.tolist()):
        n = int(chosen[members].sum())
        if n:
            drawn[members[torch.randperm(len(members), generator=draw)[:n]]] = True
    return drawn
