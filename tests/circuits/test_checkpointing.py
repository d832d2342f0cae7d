"""Layers that are computed twice score as layers that are computed once, reentrant or not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise import Sample
from excise.circuits.ablation import Ablator, Kept
from excise.circuits.attribution import attribute
from excise.circuits.graph import Graph
from excise.circuits.methods import CIRCUIT_METHODS
from excise.circuits.pairs import Pairs
from excise.core.families import ModelView
from excise.lrp.methods import METHODS
from excise.lrp.run import score_samples


def checkpoint(model: Any, reentrant: bool) -> None:
    """Switch gradient checkpointing on, under its new or its old name."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_circuits_score_as_without(
    kind: str, reentrant: bool, doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs]
):
    model, pairs = doubled(kind), make_pairs()
    ablator, graph = Ablator(model, pairs), Graph.of(ModelView.of(model))
    heads, edges = Kept(heads=torch.ones(2, 4, dtype=torch.bool)), Kept(edges=graph.is_edge.clone())

    def found() -> dict[str, Any]:
        scores = {
            name: attribute(model, pairs, name, neurons=True, edges=True)
            for name, method in CIRCUIT_METHODS.items()
            if method.contrast and not method.exact and not method.random
        }
        gates = {"heads": ablator.gate_gradients(heads, "relp"),
                 "edges": ablator.gate_gradients(edges, None)}  # fmt: skip
        return scores | gates

    expected = found()
    checkpoint(model, reentrant)
    before = model.model.get_submodule("layers" if kind != "opt" else "decoder.layers")
    functions = [layer._gradient_checkpointing_func for layer in before]
    for name, scores in found().items():
        for part, value in vars(scores).items():
            wanted = getattr(expected[name], part)
            assert (value is None) == (wanted is None)
            if value is not None:
                error = float((value - wanted).abs().max() / wanted.abs().max())
                assert error < 1e-6, (name, part)
    assert functions == [layer._gradient_checkpointing_func for layer in before]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_relevance_is_as_without(method: str, reentrant: bool, tiny_llama: Any):
    samples = [Sample((5, 17, 3, 29, 9), answer=3), Sample((4, 8, 30), answer=5)]
    weights = [] if METHODS[method].steps else ["*"]
    expected = score_samples(tiny_llama, samples, "logit", method, weights=weights)
    checkpoint(tiny_llama, reentrant)
    found = score_samples(tiny_llama, samples, "logit", method, weights=weights)
    assert torch.allclose(expected.get("heads"), found.get("heads"), rtol=1e-6)
    assert torch.allclose(expected.get("neurons"), found.get("neurons"), rtol=1e-6)
    assert all(torch.allclose(expected.weights[k], found.weights[k]) for k in expected.weights)
