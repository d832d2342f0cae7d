"""The graph of a decoder: who writes to the residual stream, and who reads what was written.

Writers are the embedding, each attention head and each MLP; readers are the queries of each head,
the keys and the values of each KV group, each MLP's input, and the logits. An edge leads from a
writer to every reader behind it. Arrays are first: scores of edges are (writers, readers), and
names like `a3.h5` are rendered from ids, never parsed back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.families import ModelView


Writer = tuple[Any, ...]
"""`("embed",)`, `("head", layer, head)` or `("mlp", layer)`."""

Reader = tuple[Any, ...]
"""`("q", layer, head)`, `("k", layer, group)`, `("v", layer, group)`, `("mlp", layer)` or
`("logits",)`."""

Edge = tuple[Writer, Reader]


@dataclass(frozen=True)
class Graph:
    """The shape of a decoder's graph: everything else follows from three numbers.

    Writers stand in the order in which they write: the embedding, then by layer the heads and the
    MLP. So what a reader can see is always the first few writers.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, view: ModelView) -> "Graph":
        """Return the graph of a live model."""
        return cls(len(view.layers), view.n_heads, view.n_kv_heads)

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """Ids of all writers, in order."""
        found: list[Writer] = [("embed",)]
        for layer in range(self.n_layers):
            found += [("head", layer, head) for head in range(self.n_heads)]
            found.append(("mlp", layer))
        return tuple(found)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """Ids of all readers, in order: by layer queries, keys, values, MLP; last the logits."""
        found: list[Reader] = []
        for layer in range(self.n_layers):
            found += [("q", layer, head) for head in range(self.n_heads)]
            found += [("k", layer, group) for group in range(self.n_kv_heads)]
            found += [("v", layer, group) for group in range(self.n_kv_heads)]
            found.append(("mlp", layer))
        return (*found, ("logits",))

    @cached_property
    def writer_index(self) -> dict[Writer, int]:
        """Position of each writer."""
        return {writer: index for index, writer in enumerate(self.writers)}

    @cached_property
    def reader_index(self) -> dict[Reader, int]:
        """Position of each reader."""
        return {reader: index for index, reader in enumerate(self.readers)}

    def visible(self, reader: Reader) -> int:
        """Return how many writers, from the first on, a reader can see."""
        if reader[0] == "logits":
            return len(self.writers)
        before = 1 + reader[1] * (self.n_heads + 1)
        return before + self.n_heads if reader[0] == "mlp" else before

    @cached_property
    def is_edge(self) -> Bool[Tensor, "writers readers"]:
        """Which pairs are edges."""
        counts = torch.tensor([self.visible(reader) for reader in self.readers])
        return torch.arange(len(self.writers))[:, None] < counts

    @property
    def group_size(self) -> int:
        """How many heads share keys and values."""
        return self.n_heads // self.n_kv_heads

    @property
    def n_edges(self) -> int:
        """How many edges there are: counted, since a table of a forged shape fits nowhere."""
        writers, layers = self.n_heads + 1, range(self.n_layers)
        attention, mlps = self.n_heads + 2 * self.n_kv_heads, writers
        inside = sum((1 + layer * writers) * attention + (layer + 1) * mlps for layer in layers)
        return inside + 1 + self.n_layers * writers

    def node_of(self, reader: Reader) -> tuple[Writer, ...]:
        """Return the writers whose output a reader feeds: heads, an MLP, or none (logits).

        Keys and values of a KV group feed all heads of the group.
        """
        if reader[0] == "logits":
            return ()
        if reader[0] == "mlp":
            return (reader,)
        if reader[0] == "q":
            return (("head", *reader[1:]),)
        size = self.group_size
        _, layer, group = reader
        return tuple(("head", layer, head) for head in range(group * size, (group + 1) * size))

    @cached_property
    def feeds(self) -> Bool[Tensor, "readers writers"]:
        """Which writers' outputs each reader feeds."""
        found = torch.zeros(len(self.readers), len(self.writers), dtype=torch.bool)
        for row, reader in enumerate(self.readers):
            for writer in self.node_of(reader):
                found[row, self.writer_index[writer]] = True
        return found

    def edges(self, chosen: Bool[Tensor, "writers readers"]) -> Iterator[Edge]:
        """Iterate over the ids of chosen edges."""
        for writer, reader in (chosen & self.is_edge).nonzero().tolist():
            yield self.writers[writer], self.readers[reader]

    def connected(self, chosen: Bool[Tensor, "writers readers"]) -> Bool[Tensor, "writers readers"]:
        """Drop edges that lead nowhere or come from nowhere, until none is left.

        An edge stays if its writer is the embedding or has a kept edge into it, and its reader is
        the logits or feeds a writer with a kept edge out of it (as EAP-IG and MIB prune circuits).
        """
        kept = chosen & self.is_edge
        feeds = self.feeds
        while True:
            fed = (kept.any(0).float() @ feeds.float()) > 0  # writers with an incoming edge
            fed[0] = True
            used = feeds.float() @ kept.any(1).float() > 0  # readers whose node writes on
            used[-1] = True
            smaller = kept & fed[:, None] & used[None, :]
            if bool((smaller == kept).all()):
                return kept
            kept = smaller

    def layer_of(self) -> Int[Tensor, " writers"]:
        """Return each writer's layer; -1 is the embedding."""
        return torch.tensor([writer[1] if len(writer) > 1 else -1 for writer in self.writers])


def name(item: Writer | Reader) -> str:
    """Render a writer or reader, as in `input`, `a3.h5`, `m7`, `a3.h5<q>`, `a3.g1<k>`, `logits`."""
    kind = item[0]
    if kind == "embed":
        return "input"
    if kind == "logits":
        return "logits"
    if kind == "mlp":
        return f"m{item[1]}"
    if kind == "head":
        return f"a{item[1]}.h{item[2]}"
    unit = "h" if kind == "q" else "g"
    return f"a{item[1]}.{unit}{item[2]}<{kind}>"


def edge_name(edge: Edge) -> str:
    """Render an edge, as in `a0.h1->a3.g0<k>`."""
    return f"{name(edge[0])}->{name(edge[1])}"
