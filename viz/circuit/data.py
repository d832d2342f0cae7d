"""What the circuit page shows: plain numbers and names, checked once.

No tensors and no torch: a room that finds a circuit turns it into these rows.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

from ...core.errors import ExciseError, look_up


Kind = Literal["embed", "head", "mlp", "logits"]
Level = Literal["nodes", "edges"]

READS = {"q": "queries", "k": "keys", "v": "values", "mlp": "MLP input", "logits": "logits"}
"""What an edge can lead into, and what it is called."""


@dataclass(frozen=True)
class Node:
    """A component that writes to the residual stream, or the logits.

    Attributes:
        name: What it is called everywhere, such as `a3.h5` or `m7`.
        kind: What it is.
        layer: Its layer; ignored for the embedding and the logits.
        unit: The head within the layer; ignored for all others.
        score: Its signed score; positive speaks for the answer.
        low: Lower end of the score's interval, if there is one.
        high: Upper end of the score's interval, if there is one.
        kept: Whether the circuit holds it.
    """

    name: str
    kind: Kind
    layer: int
    unit: int
    score: float
    low: float | None
    high: float | None
    kept: bool

    @property
    def counts(self) -> bool:
        """Whether it is a component of its own: the embedding and the logits always stay."""
        return self.kind in ("head", "mlp")


@dataclass(frozen=True)
class EdgeRow:
    """An edge from what a component writes to what another one reads.

    Attributes:
        source: Index of the writing node.
        target: Index of the reading node. Keys and values are read by a whole KV group: give one
            row for each group, with any head of it as the target.
        reads: What it leads into, one of `READS`.
        score: Its signed score.
        low: Lower end of the score's interval, if there is one.
        high: Upper end of the score's interval, if there is one.
        kept: Whether the circuit holds it.
    """

    source: int
    target: int
    reads: str
    score: float
    low: float | None
    high: float | None
    kept: bool


@dataclass(frozen=True)
class CurvePoint:
    """How faithful the circuit of one size is.

    Attributes:
        size: How many components it keeps.
        faithfulness: 1 is the whole model, 0 is nothing kept.
        low: Lower end of the interval, if there is one.
        high: Upper end of the interval, if there is one.
        random: Faithfulness of a random circuit of this size, if measured.
    """

    size: int
    faithfulness: float
    low: float | None
    high: float | None
    random: float | None = None


@dataclass(frozen=True)
class Metric:
    """A number to take away, with its interval and a few words on what it means."""

    name: str
    value: float
    low: float | None
    high: float | None
    note: str = ""


@dataclass(frozen=True)
class Example:
    """A prompt and where heads look in it.

    Attributes:
        tokens: The decoded pieces of the prompt.
        attention: By head name, a row for each query over the keys up to it.
    """

    tokens: list[str]
    attention: dict[str, list[list[float]]]


@dataclass(frozen=True)
class CircuitPicture:
    """Everything on the circuit page.

    Attributes:
        title: Heading of the page.
        subtitle: The one sentence to take away.
        footer: Where the numbers come from.
        layers: Layers of the model.
        heads: Attention heads in a layer.
        kv_groups: KV groups in a layer; as many as heads without grouped queries.
        level: Whether the circuit is made of nodes or of edges.
        nodes: All components of the model, in or out of the circuit.
        edges: All edges with a score; may be empty at node level.
        curve: Faithfulness by size.
        size: How many nodes or edges the circuit keeps.
        metrics: Numbers above the graph.
        examples: Prompts with attention.
        warnings: What a reader must know so as not to be misled.
        answer: The answer token, shown at the logits.

    Raises:
        ExciseError: Rows that do not fit together, or numbers that are not finite.
    """

    title: str
    subtitle: str
    footer: str
    layers: int
    heads: int
    kv_groups: int
    level: Level
    nodes: list[Node]
    edges: list[EdgeRow]
    curve: list[CurvePoint]
    size: int
    metrics: list[Metric] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    answer: str = ""

    def __post_init__(self):
        if self.level not in get_args(Level):
            raise ExciseError(f"level is {self.level!r}: give 'nodes' or 'edges'")
        if min(self.layers, self.heads, self.kv_groups) < 1 or self.heads % self.kv_groups:
            raise ExciseError(
                f"{self.layers} layers of {self.heads} heads in {self.kv_groups} KV groups: "
                "give positive numbers, and as many heads for each group"
            )
        for node in self.nodes:
            self._check_node(node)
        for edge in self.edges:
            self._check_edge(edge)
        for example in self.examples:
            _check_example(example)
        if any(point.size < 1 for point in self.curve):
            raise ExciseError("the curve has a size below 1: leave the empty circuit out")

    @cached_property
    def components(self) -> list[Node] | list[EdgeRow]:
        """What `size` counts: heads and MLPs, or edges."""
        return self.edges if self.level == "edges" else [n for n in self.nodes if n.counts]

    @cached_property
    def signed_order(self) -> bool:
        """Whether the kept components are rather those of largest score than of largest magnitude.

        The page's slider continues the ranking the circuit was cut from, and has to know which.
        """
        scores = [one.score for one in self.components]
        kept = {at for at, one in enumerate(self.components) if one.kept}
        by_size = sorted(range(len(scores)), key=lambda at: -abs(scores[at]))[: len(kept)]
        by_sign = sorted(range(len(scores)), key=lambda at: -scores[at])[: len(kept)]
        return len(kept.intersection(by_sign)) > len(kept.intersection(by_size))

    @cached_property
    def _groups(self) -> dict[tuple[int, int], list[int]]:
        """Indices of the heads of each (layer, KV group)."""
        found: dict[tuple[int, int], list[int]] = {}
        for at, node in enumerate(self.nodes):
            if node.kind == "head":
                found.setdefault((node.layer, self.group_of(node.unit)), []).append(at)
        return found

    def readers(self, edge: EdgeRow) -> list[int]:
        """Indices of the nodes an edge feeds: keys and values feed all heads of their group."""
        target = self.nodes[edge.target]
        if edge.reads not in ("k", "v"):
            return [edge.target]
        return self._groups[target.layer, self.group_of(target.unit)]

    def end_of(self, edge: EdgeRow) -> str:
        """What an edge leads into, by name, as in `a3.h5 q`, `a3.h0 … a3.h2 k` or `m7`."""
        names = [self.nodes[at].name for at in self.readers(edge)]
        ends = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        return ends if edge.reads in ("mlp", "logits") else f"{ends} {edge.reads}"

    def group_of(self, unit: int) -> int:
        """The KV group of a head."""
        return unit // (self.heads // self.kv_groups)

    def _check_node(self, node: Node) -> None:
        if node.kind not in get_args(Kind):
            raise ExciseError(
                f"node {node.name!r} is a {node.kind!r}: give one of {get_args(Kind)}"
            )
        if node.counts and not 0 <= node.layer < self.layers:
            raise ExciseError(f"node {node.name!r} is in layer {node.layer} of {self.layers}")
        if node.kind == "head" and not 0 <= node.unit < self.heads:
            raise ExciseError(f"node {node.name!r} is head {node.unit} of {self.heads}")
        _check_score(f"node {node.name!r}", node)

    def _check_edge(self, edge: EdgeRow) -> None:
        look_up("input of a component", edge.reads, READS)
        for end in (edge.source, edge.target):
            if not 0 <= end < len(self.nodes):
                raise ExciseError(f"an edge names node {end}: there are {len(self.nodes)} nodes")
        ends = self.nodes[edge.source].name, self.nodes[edge.target].name
        kind = "head" if edge.reads in ("q", "k", "v") else edge.reads
        if self.nodes[edge.target].kind != kind:
            raise ExciseError(f"the edge {ends} reads {edge.reads!r}: its target must be a {kind}")
        _check_score(f"the edge {ends}", edge)


def scored(picture: CircuitPicture) -> CircuitPicture:
    """The picture with a score for every node.

    Where only edges have scores, a head or an MLP receives the sum of the edges it writes: with
    gradients at every input that is its own attribution (EAP, arXiv 2310.10348).
    """
    if not picture.edges or any(node.score for node in picture.nodes if node.counts):
        return picture
    sums = [0.0] * len(picture.nodes)
    for edge in picture.edges:
        sums[edge.source] += edge.score
    nodes = [
        replace(node, score=total) if node.counts else node
        for node, total in zip(picture.nodes, sums, strict=True)
    ]
    return replace(picture, nodes=nodes)


def _check_score(what: str, row: Node | EdgeRow) -> None:
    if (row.low is None) != (row.high is None):
        raise ExciseError(f"{what} has one end of an interval: give both or none")
    if not all(math.isfinite(one) for one in (row.score, row.low or 0.0, row.high or 0.0)):
        raise ExciseError(f"{what} scores {row.score} [{row.low}, {row.high}]: give finite numbers")


def _check_example(example: Example) -> None:
    for name, rows in example.attention.items():
        fits = len(rows) == len(example.tokens)
        if not fits or any(len(row) <= query for query, row in enumerate(rows)):
            raise ExciseError(
                f"attention of {name!r} does not fit its {len(example.tokens)} tokens: "
                "give a row for each token, over all tokens up to it"
            )
        if not all(math.isfinite(weight) for row in rows for weight in row):
            raise ExciseError(f"attention of {name!r} holds NaN or infinity: give finite weights")
