"""The graph of a decoder: what it holds follows from three numbers."""

from typing import Any

import torch
from excise.circuits.graph import Graph, edge_name, name
from hypothesis import given
from hypothesis import strategies as st


def test_the_edges_are_those_that_the_order_of_writing_allows():
    graph = Graph(2, 4, 2)
    assert len(graph.writers) == 1 + 2 * 5
    assert len(graph.readers) == 2 * (4 + 2 + 2 + 1) + 1
    # layer 0: 8 attention readers see the embedding; its MLP 4 heads more; and so on
    assert graph.n_edges == 8 * 1 + 5 + 8 * 6 + 10 + 11
    for writer, reader in graph.edges(graph.is_edge):
        assert order(writer) < order(reader)
    assert int((~graph.is_edge).sum()) + graph.n_edges == graph.is_edge.numel()


def order(item: tuple[Any, ...]) -> float:
    """Say when something writes or reads; heads of a layer write after they read."""
    kind, *place = item
    layer = place[0] if place else {"embed": -1, "logits": 99}[kind]
    return layer + {"head": 0.2, "mlp": 0.5}.get(kind, 0.0)


def test_the_sizes_that_peers_report():
    assert Graph(12, 12, 4).n_edges == 18_571
    assert Graph(12, 12, 12).n_edges == 32_491


def test_names():
    graph = Graph(2, 4, 2)
    assert [name(w) for w in graph.writers[:6]] == [
        "input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0",
    ]  # fmt: skip
    assert [name(r) for r in graph.readers[3:9]] == [
        "a0.h3<q>", "a0.g0<k>", "a0.g1<k>", "a0.g0<v>", "a0.g1<v>", "m0",
    ]  # fmt: skip
    assert edge_name((("head", 0, 1), ("k", 1, 0))) == "a0.h1->a1.g0<k>"
    assert len({name(r) for r in graph.readers}) == len(graph.readers)


def test_keys_and_values_feed_the_heads_of_their_group():
    graph = Graph(2, 4, 2)
    assert graph.node_of(("k", 1, 1)) == (("head", 1, 2), ("head", 1, 3))
    assert graph.node_of(("q", 1, 3)) == (("head", 1, 3),)
    assert graph.node_of(("mlp", 0)) == (("mlp", 0),)
    assert graph.node_of(("logits",)) == ()


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.6))
def test_what_stays_connected_is_what_lies_on_a_path(seed: int, share: float):
    """Against a slow search from both ends over the chosen edges."""
    graph = Graph(2, 2, 1)
    chosen = torch.rand(graph.is_edge.shape, generator=torch.Generator().manual_seed(seed)) < share
    edges = list(graph.edges(chosen))

    def reached(nodes: set, forward: bool) -> set:
        while True:
            more = set(nodes)
            for writer, reader in edges:
                into = set(graph.node_of(reader)) or {reader}
                if forward and writer in more:
                    more |= into
                if not forward and into & more:
                    more.add(writer)
            if more == nodes:
                return nodes
            nodes = more

    fed, used = reached({("embed",)}, True), reached({("logits",)}, False)
    expected = {(w, r) for w, r in edges if w in fed and (set(graph.node_of(r)) or {r}) & used}
    assert set(graph.edges(graph.connected(chosen))) == expected
