"""Where a planted circuit sits, and which edges that makes true."""

import random
from dataclasses import dataclass

from ..graph import Edge, Reader, Writer
from .task import N_LETTERS


N_LAYERS, N_HEADS, N_KV_HEADS, D_HEAD, D_MLP = 6, 8, 4, 12, 64
N_COPIES = 2
"""Neurons per letter and rule."""

Head = tuple[int, int]
"""(layer, head)"""


@dataclass(frozen=True)
class Plan:
    """The places of all roles."""

    flag: Head
    """Looks at the token before, and writes which marker it is."""
    rule: Head
    """Brings the rule to the query."""
    fetch: tuple[Head, Head]
    """Bring the asked letter to the query, half of it each."""
    lookup: tuple[int, int]
    """MLPs that look the answer up, each for half of the letters."""
    letters: tuple[tuple[int, ...], tuple[int, ...]]
    """The letters of each of them."""
    units: tuple[tuple[int, ...], tuple[int, ...]]
    """Hidden units of each of them: `N_COPIES` per letter and rule, letters outermost."""
    answer: tuple[Head, ...]
    """Bring the answer to the last position."""
    backup: Head | None = None
    """Brings it, too, where the answer heads have not."""
    suppress: Head | None = None
    """Takes part of what the answer heads have brought away again."""

    @property
    def heads(self) -> frozenset[Head]:
        """All heads of the circuit, without the backup."""
        found = {self.flag, self.rule, *self.fetch, *self.answer}
        return frozenset(found | ({self.suppress} if self.suppress else set()))

    @property
    def neurons(self) -> frozenset[tuple[int, int]]:
        """(layer, hidden unit) of the lookup."""
        places = zip(self.lookup, self.units, strict=True)
        return frozenset((layer, unit) for layer, units in places for unit in units)

    def lookup_of(self, layer: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the lookup's units and letters in a layer; none if it is elsewhere."""
        if layer not in self.lookup:
            return (), ()
        index = self.lookup.index(layer)
        return self.units[index], self.letters[index]

    def edges(self, n_kv_heads: int) -> frozenset[Edge]:
        """List the edges along which what decides flows; none of the backup's."""
        found: set[tuple[Writer, Reader]] = set()

        def reader(kind: str, head: Head) -> Reader:
            unit = head[1] if kind == "q" else head[1] * n_kv_heads // N_HEADS
            return (kind, head[0], unit)

        def connect(writer: Writer, kind: str, head: Head) -> None:
            found.add((writer, reader(kind, head)))

        tables: list[Writer] = [("mlp", layer) for layer in self.lookup]
        connect(("embed",), "v", self.flag)
        connect(("embed",), "v", self.rule)
        for head in self.fetch:
            connect(("embed",), "q", head)
            connect(("head", *self.flag), "k", head)
            connect(("embed",), "v", head)
        for table in tables:
            found |= {(("head", *head), table) for head in (self.rule, *self.fetch)}
        for head in self.answer:
            for table in tables:
                connect(table, "v", head)
            found.add((("head", *head), ("logits",)))
        if self.suppress:
            for head in self.answer:
                connect(("head", *head), "q", self.suppress)
            for table in tables:
                connect(table, "k", self.suppress)
                connect(table, "v", self.suppress)
            found.add((("head", *self.suppress), ("logits",)))
        return frozenset(found)


def draw_plan(circuit: str, draw: random.Random) -> Plan:
    """Draw the places of a circuit: any order of layers in which it can work.

    Heads of one layer come from different KV groups (of two heads each, whatever the family), so
    that no key or value serves two of them.
    """
    last = circuit in ("backup", "negative")
    end = N_LAYERS
    orders = [
        (flag, rule, one, two, first, second, answer, final)
        for flag in range(end)
        for one in range(flag + 1, end)
        for two in range(one, end)
        for first in range(two, end)
        for second in range(first + 1, end)
        for answer in range(second + 1, end)
        for final in range(answer + last, end)
        for rule in range(first + 1)
    ]
    flag, rule, one, two, first, second, answer, final = draw.choice(orders)
    layers = [flag, rule, one, two, answer, final]
    free = {layer: draw.sample(range(N_KV_HEADS), N_KV_HEADS) for layer in range(N_LAYERS)}
    size = N_HEADS // N_KV_HEADS
    places = [(layer, free[layer].pop() * size + draw.randrange(size)) for layer in layers]
    letters = draw.sample(range(N_LETTERS), N_LETTERS)
    half = N_LETTERS // 2
    n_units = half * 2 * N_COPIES
    return Plan(
        flag=places[0],
        rule=places[1],
        fetch=(places[2], places[3]),
        lookup=(first, second),
        letters=(tuple(letters[:half]), tuple(letters[half:])),
        units=(
            tuple(draw.sample(range(D_MLP), n_units)),
            tuple(draw.sample(range(D_MLP), n_units)),
        ),
        answer=(places[4],) if last else (places[4], places[5]),
        backup=places[5] if circuit == "backup" else None,
        suppress=places[5] if circuit == "negative" else None,
    )
