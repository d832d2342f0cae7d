"""Where the parts of a circuit's graph stand, in pixels: layers upward, heads across.

The heads of a KV group stand together. `graph.js` draws the same curves in the browser.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ..text import shorten
from .data import CircuitPicture, EdgeRow, Node


LEVELS = 8
"""In how many widths edges are drawn."""

GAP = 0.45
"""Room between KV groups, in widths of a column."""

Place = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """The embedding or the logits: a bar that edges leave or reach along its length."""

    x: float
    y: float
    half: float


@dataclass(frozen=True)
class Layout:
    """The places of a picture's graph."""

    picture: CircuitPicture

    left, top = 52.0, 90.0

    @cached_property
    def columns_wide(self) -> float:
        """Width of all columns, the MLPs' included, in widths of a column."""
        return self.picture.heads + self._gap * (self.picture.kv_groups - 1) + 1.7

    @cached_property
    def wide(self) -> float:
        """Width of a column."""
        return round(min(max(700 / self.columns_wide, 11), 84), 2)

    @cached_property
    def tall(self) -> float:
        """Height of a row."""
        return round(min(max(740 / self.picture.layers, 11), 58), 2)

    @cached_property
    def indent(self) -> float:
        """Left end of the columns: small graphs stand in the middle of the least width."""
        return self.left + max(0.0, (480 - self.wide * self.columns_wide) / 2)

    @cached_property
    def columns(self) -> list[float]:
        """The middle of each head's column."""
        picture = self.picture
        return [
            round(self.indent + self.wide * (unit + 0.5 + self._gap * picture.group_of(unit)), 1)
            for unit in range(picture.heads)
        ]

    @cached_property
    def mlp(self) -> float:
        """The middle of the MLPs' column."""
        return round(self.indent + self.wide * (self.columns_wide - 0.5), 1)

    @cached_property
    def rows(self) -> list[float]:
        """The middle of each layer's row; layer 0 stands at the bottom."""
        count = self.picture.layers
        return [round(self.top + self.tall * (count - layer - 0.5), 1) for layer in range(count)]

    @cached_property
    def bottom(self) -> float:
        """Lower end of the rows."""
        return self.top + self.tall * self.picture.layers

    @cached_property
    def width(self) -> float:
        """Width of the picture."""
        return round(self.mlp + self.wide / 2 + self.indent - self.left + 24)

    @cached_property
    def height(self) -> float:
        """Height of the picture, its key included."""
        return round(self.bottom + (142 if self.width > 660 else 164))

    @cached_property
    def bars(self) -> dict[str, Bar]:
        """The embedding and the logits, above and below the middle of the heads."""
        middle = round((self.columns[0] + self.columns[-1]) / 2, 1)
        half = min(max(74.0, 0.2 * (self.columns[-1] - self.columns[0])), 150.0)
        wider = max(half, 28 + 4.6 * len(shorten(self.picture.answer, 28)))
        return {
            "embed": Bar(middle, round(self.bottom + 62, 1), half),
            "logits": Bar(middle, 38.0, wider),
        }

    @cached_property
    def largest(self) -> float:
        """Radius of the strongest component."""
        return round(min(self.wide * 0.4, self.tall * 0.44, 14), 2)

    @cached_property
    def smallest(self) -> float:
        """Radius of the weakest component of a circuit."""
        return round(max(self.largest * 0.36, 2.2), 2)

    @cached_property
    def node_limit(self) -> float:
        """The largest magnitude of a head or an MLP."""
        return max((abs(node.score) for node in self.picture.nodes if node.counts), default=0.0)

    @cached_property
    def edge_limit(self) -> float:
        """The largest magnitude of an edge."""
        return max((abs(edge.score) for edge in self.picture.edges), default=0.0)

    @cached_property
    def label_below(self) -> bool:
        """Whether there is room for names under the nodes; else they stand beside them."""
        return self.tall >= 42 and self.wide >= 34

    @cached_property
    def labels(self) -> int:
        """How many of the strongest nodes carry their name."""
        return 60 if self.label_below or self.wide >= 50 else 12 if self.wide >= 30 else 6

    def place(self, node: Node) -> Place:
        """The middle of a node."""
        if node.kind in self.bars:
            return self.bars[node.kind].x, self.bars[node.kind].y
        x = self.columns[node.unit] if node.kind == "head" else self.mlp
        return x, self.rows[node.layer]

    def radius(self, score: float) -> float:
        """Radius of a head or half the side of an MLP: the area follows the magnitude."""
        share = math.sqrt(abs(score) / self.node_limit) if self.node_limit else 0.0
        return self.smallest + (self.largest - self.smallest) * share

    def edge_level(self, score: float) -> int:
        """The width class of an edge, `0 ... LEVELS - 1`."""
        share = math.sqrt(abs(score) / self.edge_limit) if self.edge_limit else 0.0
        return min(int(share * LEVELS), LEVELS - 1)

    def curve(self, edge: EdgeRow) -> tuple[Place, Place, Place, Place]:
        """An edge as one cubic curve: its start, its two handles and its end."""
        source, target = self.picture.nodes[edge.source], self.picture.nodes[edge.target]
        x1, y1 = self._port(target, edge.reads)
        x0, y0 = self.place(source)
        x0, x1 = self._along(source, x0, x1), self._along(target, x1, x0)
        if target.kind == "mlp" and source.kind == "head" and source.layer == target.layer:
            reach, rise = (x1 - x0) * 0.3, self.tall * 0.52
            return (x0, y0), (x0 + reach, y0 - rise), (x1 - reach, y1 - rise), (x1, y1)
        lift = (y0 - y1) * 0.45
        bend = self._bend(x1 - x0, y0 - y1)
        return (x0, y0), (x0 + bend, y0 - lift), (x1 + bend, y1 + lift), (x1, y1)

    def group_rules(self, edges: list[EdgeRow]) -> Iterator[tuple[float, float, float]]:
        """Left end, right end and height of the line under each KV group that an edge leads to."""
        size = self.picture.heads // self.picture.kv_groups
        ends = (self.picture.nodes[e.target] for e in edges if e.reads in ("k", "v"))
        groups = {(node.layer, self.picture.group_of(node.unit)) for node in ends}
        for layer, group in sorted(groups) if size > 1 else ():
            first, last = self.columns[group * size], self.columns[group * size + size - 1]
            yield first, last, self.rows[layer] + self.drop

    @cached_property
    def drop(self) -> float:
        """How far below its heads a KV group is read."""
        return round(self.tall * 0.46, 2)

    @cached_property
    def _gap(self) -> float:
        return GAP if 1 < self.picture.kv_groups < self.picture.heads else 0.0

    def _port(self, node: Node, reads: str) -> Place:
        """Where an edge reaches a node: queries left, keys and values of a group at its line."""
        x, y = self.place(node)
        side = self.largest * {"q": -0.45, "v": 0.45}.get(reads, 0.0)
        size = self.picture.heads // self.picture.kv_groups
        if reads not in ("k", "v") or size == 1:
            return x + side, y
        first = self.picture.group_of(node.unit) * size
        middle = (self.columns[first] + self.columns[first + size - 1]) / 2
        return middle + side, y + self.drop

    def _along(self, node: Node, x: float, other: float) -> float:
        """Spreads the edges of a bar along it, by where they lead."""
        if node.kind not in self.bars:
            return x
        bar = self.bars[node.kind]
        reach = max(self.mlp - bar.x, 1.0)
        return bar.x + 0.86 * bar.half * min(max((other - bar.x) / reach, -1.0), 1.0)

    def _bend(self, across: float, up: float) -> float:
        """Leads an edge that passes other rows of its own column around what stands there."""
        if up < 1.5 * self.tall or abs(across) > 0.5 * self.wide:
            return 0.0
        return -0.62 * self.wide if across <= 0 else 0.62 * self.wide
