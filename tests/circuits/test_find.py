"""The whole way: a circuit is found in a model that has one, kept, read, compared, exchanged."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.circuits import find
from excise.circuits.ablation import Ablator
from excise.circuits.circuit import Circuit, bootstrap
from excise.circuits.compare import compare_circuits
from excise.circuits.discovery import by_faithfulness, by_size, refine
from excise.circuits.exchange import read_eap_ig, to_eap_ig, write_eap_ig
from excise.circuits.faithfulness import Trial
from excise.circuits.find import scored, search_circuit
from excise.circuits.levels import Ranking, get_level
from excise.circuits.page import circuit_html
from excise.circuits.pairs import Pairs
from excise.circuits.patching import patch
from excise.circuits.search import Parts, Search, prompts_in_parts
from excise.cli.show_circuit import described
from excise.core import identity
from excise.core.errors import ExciseError
from excise.core.families import ModelView


@pytest.fixture(scope="module")
def parts(make_pairs: Callable[..., Pairs]) -> Parts:
    return Parts(*(make_pairs((6, 7, 5, 6, 7, 6), seed) for seed in (1, 2, 3)))


def found_in(model: Any, parts: Parts, **search: Any) -> Circuit:
    options = {"controls": 2, **search}
    return search_circuit(model, parts, Search(**options), task="noise", allow_failing=True)


@pytest.mark.parametrize("level", ["nodes", "kv-groups", "neurons", "edges"])
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_a_circuit_keeps_what_it_was_asked_for(
    tiny: Callable[..., Any], parts: Parts, kind: str, level: str
):
    circuit = found_in(tiny(kind), parts, level=level, ablation="zero", faithfulness=0.7)
    metrics = circuit.config["metrics"]
    assert 0 < circuit.size <= len(circuit.in_circuit)
    for name in ("faithfulness", "completeness", "accuracy", "cpr", "cmd", "kl", "random"):
        assert len(metrics[name]["ci"]) == 2
    assert len(metrics["curves"]["signed"]) == 10
    assert 0.0 <= metrics["stability"]["value"] <= 1.0
    found = circuit.scores[level]
    assert found.low is not None
    assert found.high is not None
    assert bool((found.low <= found.high).all())
    assert set(metrics["ablations"]) == {"zero", "resample", "mean"}


def test_a_circuit_of_single_prompts_claims_no_interval(
    tiny_llama: Any, make_pairs: Callable[..., Pairs], tmp_path: Path
):
    single = Parts(*(make_pairs((6,), seed) for seed in (1, 2, 3)))
    circuit = found_in(tiny_llama, single, ablation="zero", size=3)
    metrics = circuit.config["metrics"]
    assert "stability" not in metrics
    assert metrics["faithfulness"]["ci"] == metrics["cpr"]["ci"] == [None, None]
    circuit.save_pretrained(tmp_path / "c")
    text = (tmp_path / "c" / "config.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    again = Circuit.from_pretrained(tmp_path / "c")
    assert again.config["metrics"] == metrics
    assert {c.low for c in again.components()} == {None}
    assert circuit_html(again)
    assert "inf" not in described(again)
    assert "[+" not in described(again)


def test_the_size_is_the_first_that_reaches_the_target(tiny_llama: Any, parts: Parts):
    trial = Trial(Ablator(tiny_llama, parts.validation, "zero"), get_level("nodes"))
    mean = patch(ModelView.of(tiny_llama), parts.train).nodes.mean(0)
    ranking = Ranking(mean)
    chosen = by_faithfulness(trial, ranking, 0.6)
    k = int(chosen.sum())
    assert trial.value(chosen) >= 0.6
    assert k == 1 or trial.value(by_size(trial, ranking, k - 1)) < 0.6
    with pytest.raises(ExciseError, match=r"faithfulness is 1\.5"):
        by_faithfulness(trial, ranking, 1.5)
    with pytest.raises(ExciseError, match="a circuit of 99 components"):
        by_size(trial, ranking, 99)


@pytest.mark.parametrize("level", ["nodes", "edges"])
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_refinement_is_never_larger_and_keeps_the_target(
    tiny: Callable[..., Any], parts: Parts, kind: str, level: str
):
    model = tiny(kind)
    grain = get_level(level)
    trial = Trial(Ablator(model, parts.validation), grain)
    worst = torch.randn(grain.count(trial.shape), generator=torch.Generator().manual_seed(0))
    chosen = by_faithfulness(trial, Ranking(worst), 0.8)
    smaller = refine(trial, chosen, 0.8, rounds=4)
    assert trial.value(smaller) >= 0.8
    assert int(smaller.sum()) <= int(chosen.sum())
    if kind == "llama-gqa":  # of this model a random order leaves much to take out
        assert int(smaller.sum()) < int(chosen.sum())


def test_a_folder_holds_the_circuit_and_its_page(tmp_path: Path, tiny_opt: Any, parts: Parts):
    circuit = found_in(tiny_opt, parts, level="edges", size=30)
    circuit.save_pretrained(tmp_path / "c")
    read = Circuit.from_pretrained(tmp_path / "c")
    assert torch.equal(read.in_circuit, circuit.in_circuit)
    assert torch.equal(read.scores["edges"].mean, circuit.scores["edges"].mean)
    assert read.nodes() == circuit.nodes()
    assert read.as_json()["faithfulness"] == circuit.as_json()["faithfulness"]
    assert len(read.as_json()["edges"]) == circuit.size
    page = (tmp_path / "c" / "circuit.html").read_text()
    assert "<svg" in page
    assert "noise" in page
    assert "<svg" in circuit._repr_html_()
    circuit.check_model(tiny_opt)
    with torch.no_grad():
        tiny_opt.model.decoder.layers[0].fc1.bias[0] += 1.0
    with pytest.raises(ExciseError, match="weights differ"):
        circuit.check_model(tiny_opt)
    with pytest.raises(ExciseError, match="exists"):
        circuit.save_pretrained(tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    for broken in ({**config, "level": "nodes"}, {**config, "shape": [2, 4]}, {"kind": "circuit"}):
        (tmp_path / "c" / "config.json").write_text(json.dumps({"schema": 1, **broken}))
        with pytest.raises(ExciseError, match="damaged"):
            Circuit.from_pretrained(tmp_path / "c")


def test_weights(tmp_path: Path, tiny_llama: Any, parts: Parts):
    circuit = found_in(
        tiny_llama, parts, level="weights", method="lrp", ablation="zero", rank="abs", size=900
    )
    assert circuit.size == 900 == sum(circuit.by_matrix().values())
    circuit.save_pretrained(tmp_path / "w")
    assert torch.equal(Circuit.from_pretrained(tmp_path / "w").in_circuit, circuit.in_circuit)
    assert circuit.as_json()["weights"] == circuit.by_matrix()
    with pytest.raises(ExciseError, match="method 'relp-ig' scores no weights: use one of lrp"):
        Search(level="weights", ablation="zero")
    with pytest.raises(ExciseError, match="set to zero"):
        Search(level="weights", method="lrp")


def test_a_task_that_the_model_fails_is_reported_first(tiny_llama: Any, parts: Parts):
    with pytest.raises(ExciseError, match=r"the model does not do noise: .* of 6 prompts"):
        search_circuit(tiny_llama, parts, task="noise")


def others(pairs: Pairs) -> dict[str, Pairs]:
    """Return pairs that differ in one thing each."""
    first, *rest = pairs.clean
    assert pairs.counterfactual is not None
    return {
        "counterfactuals": replace(pairs, counterfactual=pairs.clean),
        "no counterfactuals": replace(pairs, counterfactual=None),
        "answer": replace(pairs, clean=(replace(first, answer=8), *rest)),
        "wrong answer": replace(pairs, clean=(replace(first, wrong=8), *rest)),
        "order": Pairs(pairs.clean[::-1], pairs.counterfactual[::-1]),
    }


def test_progress_is_of_one_search(
    tmp_path: Path, tiny_llama: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    folder, other = tmp_path / "progress", deepcopy(tiny_llama)
    first = scored(tiny_llama, parts.train, Search(), 4, folder, False)
    with monkeypatch.context() as patched:  # what is read is what was kept, not scored again
        patched.setattr(find, "attribute", None)
        kept = scored(tiny_llama, parts.train, Search(), 4, folder, False)
    assert torch.equal(first.nodes, kept.nodes)

    def refused(differs: str, model: Any = tiny_llama, pairs: Pairs = parts.train, **search: Any):
        with pytest.raises(ExciseError, match=f"another run, with other {differs}: repeat"):
            scored(model, pairs, Search(**search), 4, folder, False)

    refused("method", method="eap")
    refused("seed", seed=1)
    refused("level, method", level="neurons", method="eap")
    for pairs in others(parts.train).values():
        refused("data", pairs=pairs)
    other.config.rms_norm_eps = 1e-3  # equal weights, used otherwise
    refused("architecture", model=other)
    with monkeypatch.context() as patched:
        patched.setattr(identity, "versions", lambda: {"torch": "0"})
        refused("versions")
    search_circuit(tiny_llama, parts, Search(ablation="zero", faithfulness=0.3), allow_failing=True,
                 resume=folder)  # fmt: skip
    assert not folder.exists()


def test_a_circuit_says_what_it_was_found_with(tiny_llama: Any, parts: Parts):
    made = {"source": "task noise", "counterfactual": "any"}
    found = {
        name: search_circuit(
            tiny_llama, Parts(pairs, parts.validation, parts.test), Search(size=3, controls=0),
            allow_failing=True, made_from=made,
        ).config
        for name, pairs in {"": parts.train, **others(parts.train)}.items() if "no" not in name
    }  # fmt: skip
    assert len({config["data"]["train"] for config in found.values()}) == len(found) == 5
    assert len({config["data"]["test"] for config in found.values()}) == 1
    assert all(config["made_from"] == made for config in found.values())


def test_edges_that_a_method_cannot_score_are_named(tiny_opt: Any, parts: Parts):
    for method, told in (("cp-lrp-difference", True), ("relp", False)):
        circuit = found_in(tiny_opt, parts, level="edges", method=method, size=30)
        said = [words for words in circuit.config["warnings"] if "edges into queries" in words]
        assert bool(said) == told


@pytest.mark.parametrize(("search", "more"), [({"size": 1}, "size"), ({}, "faithfulness")])
def test_nothing_left_says_what_to_ask_for(
    tiny_llama: Any, parts: Parts, monkeypatch: pytest.MonkeyPatch, search: Any, more: str
):
    def nothing(_trial: Any, scores: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros(scores.shape, dtype=torch.bool)

    monkeypatch.setattr(find, "choose", nothing)
    with pytest.raises(ExciseError, match=f"no component is left .* a larger --{more}$"):
        search_circuit(tiny_llama, parts, Search(**search), allow_failing=True)


def test_bounds_come_from_resampled_prompts():
    samples = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0], [3.0, 0.0]])
    scores, means = bootstrap(samples, resamples=400)
    assert scores.mean.tolist() == [3.0, 0.0]
    half = 3.182446 * (8 / 3) ** 0.5 / 2  # Student's t, 3 degrees of freedom
    assert scores.low is not None
    assert scores.high is not None
    assert scores.low.tolist() == pytest.approx([3.0 - half, 0.0], abs=1e-5)
    assert scores.high.tolist() == pytest.approx([3.0 + half, 0.0], abs=1e-5)
    assert means is not None
    assert means.shape == (400, 2)
    assert means[:, 0].min() >= 1.0
    assert means[:, 0].std() == pytest.approx(2**0.5 / 2, rel=0.1)


def test_of_a_single_prompt_there_is_no_interval():
    scores, means = bootstrap(torch.tensor([[1.0, 2.0]]))
    assert scores.mean.tolist() == [1.0, 2.0]
    assert scores.low is scores.high is means is None
    assert scores.columns() == [[1.0, 2.0], [None, None], [None, None]]


def test_own_prompts_are_shared_out_without_overlap(make_pairs: Callable[..., Pairs]):
    parts = prompts_in_parts(make_pairs((5,) * 16))
    rows = [sample.input_ids for pairs in vars(parts).values() for sample in pairs.clean]
    assert [len(pairs) for pairs in vars(parts).values()] == [8, 4, 4]
    assert len(set(rows)) == 16
    with pytest.raises(ExciseError, match="4 prompts are too few"):
        prompts_in_parts(make_pairs((5,) * 4))


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_eap_igs_layout_there_and_back(
    tmp_path: Path, tiny: Callable[..., Any], parts: Parts, kind: str
):
    circuit = found_in(tiny(kind), parts, level="edges", size=20)
    write_eap_ig(circuit, tmp_path / "c.json")
    graph = circuit.shape.graph
    found = json.loads((tmp_path / "c.json").read_text())
    per_head = graph.n_layers * (3 * 4 + 1) + 1  # readers where each head has its own keys
    width = {"d_model": ModelView.of(tiny(kind)).d_model}
    assert found["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, **width}
    assert len({edge.split("->")[1] for edge in found["edges"]}) == per_head
    inside = sum(row["in_graph"] for row in found["edges"].values())
    assert inside >= circuit.size
    read = read_eap_ig(tmp_path / "c.json", graph)
    assert read.edges is not None
    assert torch.allclose(read.edges[0], circuit.scores["edges"].mean, atol=1e-5)
    assert torch.allclose(read.nodes[0], circuit.scores["nodes"].mean, atol=1e-5)


def test_what_is_no_such_file_is_named(tmp_path: Path, tiny_llama: Any, parts: Parts):
    circuit = found_in(tiny_llama, parts, level="nodes", size=4)
    graph = circuit.shape.graph
    assert sum(row["in_graph"] for row in to_eap_ig(circuit)["nodes"].values()) == 6
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ExciseError, match="no circuit in EAP-IG's layout"):
        read_eap_ig(tmp_path / "a.json", graph)
    with pytest.raises(ExciseError, match="cannot be read"):
        read_eap_ig(tmp_path / "none.json", graph)
    other = to_eap_ig(circuit)
    other["cfg"]["n_layers"] = 3
    (tmp_path / "b.json").write_text(json.dumps(other))
    with pytest.raises(ExciseError, match="of 3 layers and 4 heads, and this one has 2 and 4"):
        read_eap_ig(tmp_path / "b.json", graph)


def test_two_circuits_side_by_side(tiny_llama: Any, tiny_opt: Any, parts: Parts):
    one, two = (found_in(tiny_llama, parts, size=k) for k in (4, 6))
    found = compare_circuits(one, two)
    assert (found.common, found.only_first, len(found.only_second)) == (4, (), 2)
    assert found.jaccard == pytest.approx(4 / 6)
    assert found.expected == pytest.approx(2.4 / 7.6)
    assert found.rank_correlation == pytest.approx(1.0)
    json.dumps(found.as_json())
    flat = replace(one.scores["nodes"], mean=torch.zeros_like(one.scores["nodes"].mean))
    alike = replace(one, scores={"nodes": flat})
    assert compare_circuits(alike, two).rank_correlation is None
    edges = found_in(tiny_llama, parts, level="edges", size=25)
    with pytest.raises(ExciseError, match="the level is nodes here and edges there"):
        compare_circuits(one, edges)
    with pytest.raises(ExciseError, match="the shape is"):
        compare_circuits(one, found_in(tiny_opt, parts, size=4))
