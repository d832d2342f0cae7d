"""What is written for other tools is what their readers ask for, restated here in our words."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.circuits.circuit import Circuit
from excise.circuits.exchange import read_eap_ig, to_eap_ig, write_eap_ig
from excise.circuits.find import search_circuit
from excise.circuits.pairs import Pairs
from excise.circuits.search import Parts, Search
from excise.core.errors import ExciseError
from excise.core.families import ModelView


SIZES = {"nodes": 4, "kv-groups": 3, "edges": 25}


@pytest.fixture(scope="module", params=["llama-gqa", "opt"])
def model(request: pytest.FixtureRequest, tiny: Callable[..., Any]) -> Any:
    return tiny(request.param)


@pytest.fixture(scope="module")
def parts(make_pairs: Callable[..., Pairs]) -> Parts:
    return Parts(*(make_pairs((6, 7, 5, 6), seed) for seed in (1, 2, 3)))


@pytest.fixture(scope="module", params=SIZES)
def circuit(request: pytest.FixtureRequest, model: Any, parts: Parts) -> Circuit:
    search = Search(level=request.param, method="relp", size=SIZES[request.param], controls=0)
    return search_circuit(model, parts, search, task="noise", allow_failing=True)


def nodes_and_edges(cfg: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the names that EAP-IG gives to the nodes and edges of a model with these numbers.

    Restated from `Graph.from_model` of hannamw/EAP-IG, commit 795f560: each head reads three
    times, and with attention and MLP one after the other an MLP reads the heads of its layer.
    """
    assert not cfg["parallel_attn_mlp"]
    written, edges = ["input"], set()
    for layer in range(cfg["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
        edges |= {f"{w}->{head}<{x}>" for w in written for head in heads for x in "qkv"}
        written += heads
        edges |= {f"{w}->m{layer}" for w in written}
        written.append(f"m{layer}")
    edges |= {f"{w}->logits" for w in written}
    return {*written, "logits"}, edges


def read_as_they_do(path: Path) -> dict[str, Any]:
    """Read a file with the demands of EAP-IG's `Graph.from_json`, commit 795f560.

    MIB's circuit track (its README and `MIB_circuit_track/circuit_loading.py`, commit b759df3) asks
    for the same; to be evaluated by edges or nodes, one file holds a score of each.
    """
    found = json.loads(path.read_text())
    cfg, nodes, edges = found["cfg"], found["nodes"], found["edges"]
    assert all(type(cfg[key]) is int for key in ("n_layers", "n_heads", "d_model"))
    known_nodes, known_edges = nodes_and_edges(cfg)
    for name, row in nodes.items():
        assert name in known_nodes
        assert type(row["in_graph"]) is bool
        assert row["in_graph"] or name != "logits"  # always inside: theirs refuses to set it
        assert not {"neurons", "neurons_scores"} & row.keys()  # d_model long there: not our units
    for name, row in edges.items():
        assert name in known_edges
        assert type(row["in_graph"]) is bool
        assert type(row["score"]) is float
    return found


def test_eap_ig_and_mib_can_read_it(circuit: Circuit, model: Any, tmp_path: Path):
    write_eap_ig(circuit, tmp_path / "c.json")
    found = read_as_they_do(tmp_path / "c.json")
    nodes, edges = nodes_and_edges(found["cfg"])
    assert found["cfg"]["d_model"] == ModelView.of(model).d_model
    assert found["nodes"].keys() == nodes
    assert found["edges"].keys() == edges
    scored = {name for name, row in found["nodes"].items() if type(row.get("score")) is float}
    assert scored == nodes - {"input", "logits"}  # as in their files: they stay inside


def test_what_is_inside_is_one_graph(circuit: Circuit):
    found = to_eap_ig(circuit)
    inside = {name for name, row in found["nodes"].items() if row["in_graph"]}
    assert len(inside) == len(circuit.nodes()) + 2
    for name, row in found["edges"].items():
        writer, reader = name.split("->")
        both = {writer, reader.split("<")[0]} <= inside
        assert both or not row["in_graph"]
        assert circuit.level.name == "edges" or row["in_graph"] == both


def test_scores_come_back(circuit: Circuit, tmp_path: Path):
    write_eap_ig(circuit, tmp_path / "c.json")
    read = read_eap_ig(tmp_path / "c.json", circuit.shape.graph)
    assert read.edges is not None
    torch.testing.assert_close(read.edges[0], circuit.scores["edges"].mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(read.nodes[0], circuit.scores["nodes"].mean, atol=1e-6, rtol=1e-5)


def test_membership_stands_in_for_scores(circuit: Circuit, tmp_path: Path):
    plain = to_eap_ig(replace(circuit, scores={}) if circuit.level.name != "edges" else circuit)
    for row in plain["edges"].values():
        del row["score"]
    (tmp_path / "mine.json").write_text(json.dumps(plain))  # as MIB's sets of circuits are
    edges = read_eap_ig(tmp_path / "mine.json", circuit.shape.graph).edges
    assert edges is not None
    assert set(edges[0].tolist()) == {0.0, 1.0}
    if circuit.level.name == "edges":
        assert torch.equal(edges[0].bool(), circuit.in_circuit)
        return
    write_eap_ig(replace(circuit, scores={"nodes": circuit.scores["nodes"]}), tmp_path / "c.json")
    again = read_eap_ig(tmp_path / "c.json", circuit.shape.graph).edges
    assert again is not None
    assert torch.equal(again > 0, edges > 0)  # a group may have one of its heads inside: a half


def test_what_has_no_place_there_is_refused(circuit: Circuit):
    old = {key: value for key, value in circuit.config.items() if key != "d_model"}
    with pytest.raises(ExciseError, match=r"how wide its model is.*find it again"):
        to_eap_ig(replace(circuit, config=old))
    other = {**circuit.config, "level": "neurons"}
    with pytest.raises(ExciseError, match=r"a circuit of neurons .* output dimensions"):
        to_eap_ig(replace(circuit, config=other))
