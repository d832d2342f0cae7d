"""Runs with parts cut: against what the words say, done slowly with whole forward passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.circuits.ablation import ABLATIONS, Ablator, Kept
from excise.circuits.graph import Graph
from excise.circuits.pairs import Pairs
from excise.circuits.patching import effect, patch
from excise.core.errors import ExciseError
from excise.core.families import ModelView

from .conftest import EDGE_KINDS


def counterfactual_effect(model: Any, pairs: Pairs) -> torch.Tensor:
    from dataclasses import replace

    assert pairs.counterfactual is not None
    ids = zip(pairs.clean, pairs.counterfactual, strict=True)
    swapped = Pairs(tuple(replace(c, input_ids=o.input_ids) for c, o in ids))
    return effect(Ablator(model, swapped, "zero"), None)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_keeping_all_changes_nothing(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str, ablation: Any
):
    model = doubled(kind)
    ablator = Ablator(model, make_pairs(), ablation)
    full = effect(ablator, None)
    everything = Kept(edges=Graph.of(ablator.view).is_edge)
    assert torch.allclose(effect(ablator, everything), full, atol=1e-5)
    nodes = Kept(heads=torch.ones(2, 4).bool(), mlps=torch.ones(2).bool())
    assert torch.equal(effect(ablator, nodes), full)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_keeping_nothing_under_resample_ablation_is_the_counterfactual(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    model, pairs = doubled(kind), make_pairs()
    ablator = Ablator(model, pairs)
    none = Kept(edges=torch.zeros_like(Graph.of(ablator.view).is_edge))
    assert torch.allclose(effect(ablator, none), counterfactual_effect(model, pairs), atol=1e-5)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_a_node_is_all_the_edges_out_of_it(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str, ablation: Any
):
    ablator = Ablator(doubled(kind), make_pairs(), ablation)
    graph = Graph.of(ablator.view)
    heads = torch.tensor([[True, False, True, False], [False, True, True, False]])
    mlps = torch.tensor([True, False])
    edges = graph.is_edge.clone()
    for index, writer in enumerate(graph.writers[1:], 1):
        kept = heads[writer[1:]] if writer[0] == "head" else mlps[writer[1]]
        edges[index] &= kept
    by_node, by_edge = (
        effect(ablator, Kept(heads=heads, mlps=mlps)),
        effect(ablator, Kept(edges=edges)),
    )
    assert torch.allclose(by_node, by_edge, atol=1e-5)
    assert not torch.allclose(by_node, effect(ablator, None), atol=1e-2)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "opt-350m"])
def test_zeroed_heads_and_neurons_are_columns_set_to_zero(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    model, pairs = doubled(kind), make_pairs()
    ablator = Ablator(model, pairs, "zero")
    heads, neurons = torch.rand(2, 4) < 0.5, torch.rand(2, 24) < 0.5
    found = effect(ablator, Kept(heads=heads, neurons=neurons))
    with torch.no_grad():
        for index, layer in enumerate(ablator.view.layers):
            layer.attention_out.weight.mul_(heads[index].repeat_interleave(8))
            layer.mlp_out.weight.mul_(neurons[index])
    assert torch.allclose(found, effect(ablator, None), atol=1e-5)


def test_means_are_over_counterfactual_tokens_and_not_over_padding(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs]
):
    model, pairs = doubled("llama-gqa"), make_pairs((4, 9))
    together = Ablator(model, pairs, "mean", batch_size=2)
    alone = Ablator(model, pairs, "mean", batch_size=1)
    for key, value in together.batches[0].values.items():
        assert torch.allclose(value, alone.batches[0].values[key], atol=1e-6)
    view = ModelView.of(model)
    seen: list[torch.Tensor] = []
    handle = view.layers[1].mlp_out.register_forward_hook(lambda _m, _a, y: seen.append(y[0]))
    for sample in pairs.counterfactual or ():
        model(torch.tensor([sample.input_ids]))
    handle.remove()
    mean = torch.cat(seen).mean(0)
    assert torch.allclose(together.batches[0].values["mlp", 1].flatten(), mean, atol=1e-6)


def test_weights_are_put_back_after_a_run_and_after_an_error(
    tiny_llama: Any, make_pairs: Callable[..., Pairs]
):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    ablator = Ablator(tiny_llama, make_pairs(), "zero")
    n = sum(linear.weight.numel() for linear in ablator.view.layer_linears().values())
    kept = torch.rand(n) < 0.5
    found = effect(ablator, Kept(weights=kept))

    def stop(_head: Any, _args: Any) -> None:
        raise RuntimeError("in between")

    handle = tiny_llama.lm_head.register_forward_pre_hook(stop)
    heads = torch.zeros(2, 4, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="in between"):
        ablator.run(Kept(weights=kept, heads=heads))
    handle.remove()
    assert not any(module._forward_pre_hooks for module in tiny_llama.modules())
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    parts = kept.split([x.weight.numel() for x in ablator.view.layer_linears().values()])
    with torch.no_grad():
        for linear, keep in zip(ablator.view.layer_linears().values(), parts, strict=True):
            linear.weight.mul_(keep.view_as(linear.weight))
    assert torch.allclose(found, effect(ablator, None), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt-350m"])
def test_exact_patching_replaces_one_component(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    model, pairs = doubled(kind), make_pairs((5, 7))
    view = ModelView.of(model)
    found = patch(view, pairs, edges=True)
    ablator = Ablator(model, pairs)
    graph = Graph.of(view)
    heads = torch.ones(2, 4, dtype=torch.bool)
    heads[0, 2] = False
    lost = effect(ablator, None) - effect(ablator, Kept(heads=heads))
    assert found.heads is not None
    assert torch.allclose(found.heads[:, 0, 2], lost, atol=1e-6)
    assert found.edges is not None
    position = list(graph.edges(graph.is_edge)).index((("mlp", 0), ("logits",)))
    edges = graph.is_edge.clone()
    edges[graph.writer_index["mlp", 0], -1] = False
    lost = effect(ablator, None) - effect(ablator, Kept(edges=edges))
    assert torch.allclose(found.edges[:, position], lost, atol=1e-6)


def test_what_cannot_be_run_is_named(tiny_llama: Any, make_pairs: Callable[..., Pairs]):
    with pytest.raises(ExciseError, match="ablation 'mean' needs counterfactual"):
        Ablator(tiny_llama, Pairs(make_pairs().clean), "mean")
    with pytest.raises(ExciseError, match="unknown ablation 'men': did you mean 'mean'"):
        Ablator(tiny_llama, make_pairs(), "men")  # type: ignore[arg-type]
