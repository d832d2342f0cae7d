"""Scores of nodes, neurons and edges: against autograd, and against a run with gates."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.circuits.ablation import Ablator, Kept
from excise.circuits.attribution import attribute
from excise.circuits.graph import Graph
from excise.circuits.methods import CIRCUIT_METHODS, CircuitMethod
from excise.circuits.pairs import Pairs, logit_difference, only_last
from excise.circuits.patching import expand
from excise.circuits.probe import Probe, run
from excise.circuits.scores import Attribution
from excise.circuits.writers import head_outputs
from excise.core.data import Sample, collate
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.core.frozen import frozen
from excise.lrp.scope import LRPScope

from .conftest import EDGE_KINDS


GRADIENTS = [name for name, method in CIRCUIT_METHODS.items()
             if method.contrast and not method.exact and not method.random]  # fmt: skip


def everything(
    model: Any, pairs: Pairs, method: str | CircuitMethod, **options: Any
) -> Attribution:
    return attribute(model, pairs, method, neurons=True, edges=True, **options)


@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_logits_under_the_probe_are_the_models_bit_for_bit(
    tiny: Callable[..., Any], make_pairs: Callable[..., Pairs], kind: str
):
    model = tiny(kind)
    view, batch = ModelView.of(model), collate(make_pairs().clean)
    plain = run(view, batch)
    for scope in (frozen(view), LRPScope(model, "relp"), LRPScope(model, "attnlrp")):
        with scope, Probe(view, edges=True) as probe:
            probe.start(batch)
            seen = run(view, batch)
            logit_difference(seen, only_last(batch)).sum().backward()
        assert torch.equal(seen, plain)
    whole = model(**batch.model_inputs(view.family.passes_position_ids)).logits
    picked = whole[torch.arange(3), batch.last]
    assert torch.allclose(plain[:, 0], picked, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", [kind for kind in EDGE_KINDS if kind != "gemma3"])
def test_writers_add_up_to_the_residual_stream(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    view = ModelView.of(doubled(kind))
    batch = collate(make_pairs().clean)
    with torch.no_grad(), Probe(view, edges=True) as probe:
        probe.start(batch)
        run(view, batch)
    seen = probe.values
    stream = seen["embed", 0]
    for index, layer in enumerate(view.layers):
        stream = stream + head_outputs(view, layer, seen["z", index]).sum(1)
        if layer.attention_out.bias is not None:
            stream = stream + layer.attention_out.bias
        if not view.norm_first:
            stream = layer.attention_norm(stream)
        stream = stream + seen["mlp", index]
        if not view.norm_first:
            stream = layer.mlp_norm(stream)
    assert torch.allclose(stream, seen["end", 0], atol=1e-5)


@pytest.mark.parametrize("method", ["eap", "relp", "lrp-difference", "cp-lrp-difference"])
@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_edges_are_the_gradients_of_gates_in_private_streams(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str, method: str
):
    """The other implementation: every reader really gets its own stream, autograd does the rest."""
    model, pairs = doubled(kind), make_pairs()
    graph = Graph.of(ModelView.of(model))
    found = everything(model, pairs, method)
    ablator, rules = Ablator(model, pairs), CIRCUIT_METHODS[method].rules
    gates = ablator.gate_gradients(Kept(edges=graph.is_edge.clone()), rules)
    assert found.edges is not None
    assert gates.edges is not None
    scale = float(found.edges.abs().max())
    assert torch.allclose(found.edges.mean(0), gates.edges[graph.is_edge], atol=1e-5 * scale)


@pytest.mark.parametrize("method", GRADIENTS)
@pytest.mark.parametrize("kind", ["llama-gqa", "gemma3", "opt", "opt-350m"])
def test_edges_out_of_a_node_add_up_to_the_node(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str, method: str
):
    model = doubled(kind)
    graph = Graph.of(ModelView.of(model))
    found = everything(model, make_pairs(), method)
    assert found.edges is not None
    for sample, nodes in zip(found.edges, found.nodes, strict=True):
        assert torch.allclose(expand(graph, sample).sum(1)[1:], nodes, atol=1e-4)


@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_deeplift_shares_out_the_change_of_the_answer_at_every_cut(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    """Edges into the logits add up to it, those out of a node to the node; alone as in a batch."""
    model, pairs = doubled(kind), make_pairs()
    view = ModelView.of(model)
    graph = Graph.of(view)
    found = everything(model, pairs, "deeplift")
    assert found.edges is not None
    dense = torch.stack([expand(graph, sample) for sample in found.edges])
    with torch.no_grad():
        clean, other = (
            torch.cat([logit_difference(run(view, batch), only_last(batch)) for batch in part])
            for part in ([collate(pairs.clean)], [collate(_other(pairs))])
        )
    change = (clean - other).float()
    assert torch.allclose(dense[:, :, -1].sum(1), change, rtol=1e-4, atol=1e-4)
    assert torch.allclose(dense[:, 0].sum(1), change, rtol=1e-4, atol=1e-4)  # the embedding has all
    assert torch.allclose(dense.sum(2)[:, 1:], found.nodes, atol=1e-4)
    alone = everything(model, pairs, "deeplift", batch_size=1)
    assert alone.edges is not None
    assert torch.allclose(alone.edges, found.edges, atol=1e-5)


@pytest.mark.parametrize("method", ["deeplift", "relp", "eap"])
@pytest.mark.parametrize("kind", EDGE_KINDS)
def test_half_precision_is_close(
    tiny: Callable[..., Any], make_pairs: Callable[..., Pairs], kind: str, method: str
):
    found, half = (
        everything(model, make_pairs(), method) for model in (tiny(kind), tiny(kind).bfloat16())
    )
    for name in ("nodes", "neurons", "edges"):
        one, other = (getattr(part, name).flatten() for part in (found, half))
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.97


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_nodes_and_neurons_are_activation_differences_times_autograds_gradients(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs], kind: str
):
    model, pairs = doubled(kind), make_pairs((6, 6))
    view = ModelView.of(model)
    found = everything(model, pairs, "eap")
    heads, neurons = torch.zeros(2, 2, 4), torch.zeros(2, 2, 24)
    for row in range(2):
        seen = [_writes(view, sample) for sample in (pairs.clean[row], _other(pairs)[row])]
        (clean, value), (other, _) = seen
        grads = torch.autograd.grad(value, clean)
        change = [(a - b) * g for a, b, g in zip(clean, other, grads, strict=True)]
        for layer in range(2):
            heads[row, layer] = change[layer].unflatten(-1, (4, -1)).sum((0, 1, 3)).float()
            neurons[row, layer] = change[2 + layer].view(6, -1).sum(0).float()
    assert found.heads is not None
    assert found.neurons is not None
    assert torch.allclose(found.heads, heads, atol=1e-5)
    assert torch.allclose(found.neurons, neurons, atol=1e-5)


def _other(pairs: Pairs) -> tuple[Sample, ...]:
    assert pairs.counterfactual is not None
    return pairs.counterfactual


def _writes(view: ModelView, sample: Sample) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return what linears read from heads and hidden units, with a graph to the answer."""
    seen: list[torch.Tensor] = []
    linears = [layer.attention_out for layer in view.layers]
    linears += [layer.mlp_out for layer in view.layers]
    order: dict[int, torch.Tensor] = {}

    def keep(index: int) -> Any:
        return lambda _m, args: order.__setitem__(index, args[0])

    handles = [m.register_forward_pre_hook(keep(i)) for i, m in enumerate(linears)]
    logits = view.model(torch.tensor([sample.input_ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    seen += [order[index] for index in range(len(linears))]
    return seen, logits[7] - logits[9]


def test_prompts_score_as_they_would_alone(tiny_llama: Any, make_pairs: Callable[..., Pairs]):
    pairs = make_pairs((4, 9, 6))
    together = everything(tiny_llama, pairs, "relp", batch_size=3)
    alone = everything(tiny_llama, pairs, "relp", batch_size=1)
    for one, other in zip(vars(together).values(), vars(alone).values(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_integrated_gradients_of_edges_add_up_to_what_the_answer_loses(
    doubled: Callable[[str], Any], make_pairs: Callable[..., Pairs]
):
    """Completeness, at the embedding: many points give the change of the logit difference."""
    model, pairs = doubled("opt"), make_pairs((5,))
    many = CircuitMethod("fine", "", points=tuple((i + 0.5) / 200 for i in range(200)))
    found = everything(model, pairs, many).edges
    assert found is not None
    graph = Graph.of(ModelView.of(model))
    total = expand(graph, found[0])[0].sum()
    plain = [Pairs((s,)) for s in (pairs.clean[0], _other(pairs)[0])]
    clean, other = (
        logit_difference(logits, only_last(batch))
        for part in plain for batch, logits in Ablator(model, part, "zero").run()
    )  # fmt: skip
    assert torch.allclose(total.double(), clean - other, rtol=1e-2)  # ReLU has kinks


def test_random_scores_are_seeded_and_of_every_kind(
    tiny_opt: Any, make_pairs: Callable[..., Pairs]
):
    one, two, three = (
        everything(tiny_opt, make_pairs(), "random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.nodes, two.nodes)
    assert not torch.equal(one.nodes, three.nodes)
    assert one.edges is not None
    assert one.edges.shape == (3, Graph(2, 4, 4).n_edges)


def test_activation_norms_are_sizes(tiny_llama: Any, make_pairs: Callable[..., Pairs]):
    found = everything(tiny_llama, make_pairs(), "activation-norm")
    assert found.edges is not None
    assert bool((found.nodes > 0).all())
    assert bool((found.edges > 0).all())


def test_what_cannot_be_scored_is_named(tiny_llama: Any, make_pairs: Callable[..., Pairs]):
    pairs = make_pairs()
    with pytest.raises(ExciseError, match="method 'relp' needs counterfactual prompts"):
        attribute(tiny_llama, Pairs(pairs.clean), "relp")
    with pytest.raises(ExciseError, match="unknown circuit method 'rel': did you mean"):
        attribute(tiny_llama, pairs, "rel")
    with pytest.raises(ExciseError, match="nothing to score"):
        attribute(tiny_llama, pairs, nodes=False)
    with pytest.raises(ExciseError, match="prompt 0 has 5 tokens and its counterfactual 8"):
        Pairs(pairs.clean[:1], _other(pairs)[1:2])
    with pytest.raises(ExciseError, match="prompt 0 lacks an answer"):
        Pairs((Sample((1, 2)),))
    attribute(tiny_llama, Pairs(pairs.clean), "lrp")
