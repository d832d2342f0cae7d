"""A circuit turned into the rows of its picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.circuits.circuit import Circuit
from excise.circuits.find import search_circuit
from excise.circuits.page import circuit_dot_of, circuit_html, picture
from excise.circuits.pairs import Pairs, encode_pairs
from excise.circuits.search import Parts, Search, planned
from excise.tasks.registry import task_prompts


@pytest.fixture(scope="module")
def ioi_parts(tiny_tokenizer: Any) -> Parts:
    made = (task_prompts("ioi", tiny_tokenizer, 8, 0, s) for s in ("train", "validation", "test"))
    return Parts(*(encode_pairs(tiny_tokenizer, prompts) for prompts in made))


@pytest.fixture(scope="module")
def circuits(tiny: Callable[..., Any], tiny_tokenizer: Any, ioi_parts: Parts) -> dict[str, Circuit]:
    return {
        level: search_circuit(
            tiny("llama-gqa"), ioi_parts, Search(level=level, size=size, controls=1), task="ioi",
            tokenizer=tiny_tokenizer, allow_failing=True,
        )
        for level, size in (("nodes", 5), ("edges", 12), ("neurons", 9))
    }  # fmt: skip


def test_nodes_come_with_the_edges_between_them(circuits: dict[str, Circuit]):
    circuit = circuits["nodes"]
    drawn = picture(circuit)
    kept = {node.name for node in drawn.nodes if node.kept}
    assert len(drawn.nodes) == 12
    assert kept == {"input", "logits", *(c.name for c in circuit.components() if c.kept)}
    assert drawn.edges
    for edge in drawn.edges:
        assert drawn.nodes[edge.source].kept
        assert drawn.nodes[edge.target].kept
        assert edge.kept
    assert drawn.size == 5
    assert 5 in [point.size for point in drawn.curve]


def test_edges_lead_to_the_right_places(circuits: dict[str, Circuit]):
    circuit = circuits["edges"]
    graph, drawn = circuit.shape.graph, picture(circuit)
    names = [node.name for node in drawn.nodes]
    kept = {(names[e.source], names[e.target], e.reads) for e in drawn.edges if e.kept}
    assert len(drawn.edges) == int((circuit.scores["edges"].mean != 0).sum())
    assert sum(edge.kept for edge in drawn.edges) == circuit.size
    for (writer, reader), score in circuit.edges():
        heads = graph.node_of(reader)
        targets = {names[graph.writer_index[head]] for head in heads} or {"logits"}
        found = [k for k in kept if k[0] == names[graph.writer_index[writer]] and k[1] in targets
                 and k[2] == reader[0]]  # fmt: skip
        assert found, (writer, reader, score)


def test_the_attention_of_an_example_is_the_models(
    circuits: dict[str, Circuit], tiny: Callable[..., Any], ioi_parts: Parts
):
    circuit = circuits["nodes"]
    example = circuit.examples[0]
    ids = ioi_parts.test.clean[0].input_ids
    assert len(example["tokens"]) == len(ids)
    model = tiny("llama-gqa")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(torch.tensor([ids]), output_attentions=True).attentions
    heads = [node for node in circuit.nodes() if node[0] == "head"]
    assert len(example["attention"]) == len(heads)
    for _, layer, head in heads:
        rows = example["attention"][f"a{layer}.h{head}"]
        assert [len(row) for row in rows] == list(range(1, len(ids) + 1))
        assert rows[-1] == pytest.approx(patterns[layer][0, head, -1].tolist(), abs=6e-4)


@pytest.mark.parametrize("level", ["nodes", "edges", "neurons"])
def test_every_grain_has_a_page(circuits: dict[str, Circuit], level: str):
    page = circuit_html(circuits[level])
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert circuit_dot_of(circuits[level]).startswith("digraph")


def test_the_plan_counts_what_grows(
    tiny: Callable[..., Any], make_pairs: Callable[..., Pairs], tmp_path: Path
):
    model = tiny("opt")
    parts = Parts(*(make_pairs((8,) * 4) for _ in range(3)))
    needs = [
        planned(model, parts, search, batch).peak
        for search, batch in (
            (Search(), 4), (Search(level="edges"), 4), (Search(level="edges"), 64),
        )
    ]  # fmt: skip
    assert needs == sorted(needs)
    assert needs[2] - needs[1] > 2**20
    patching = planned(model, parts, Search(method="patching"), 2)
    assert patching.counts["passes of exact patching"] == (2 * 5 + 1) * 2
    assert "passes of exact patching" not in planned(model, parts, Search(), 2).counts
