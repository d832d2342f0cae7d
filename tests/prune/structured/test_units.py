"""Scores of whole units, a second time: slow, plain, one sample and one unit at a time."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.data import Sample, batches
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.lrp.run import score_samples
from excise.prune.structured.compensation import mean_inputs_of
from excise.prune.structured.formulas import block_influence, flap, magnitude, wanda
from excise.prune.structured.shrink import STRUCTURED, select_uniform, shrink
from excise.prune.structured.size import parameters_left
from excise.prune.structured.units import (
    UNIT_CRITERIA,
    forecast_units,
    get_unit_criterion,
    unit_scores,
)
from torch import Tensor


SAMPLES = [
    Sample((1, 5, 9, 17, 3, 44, 2)),
    Sample((1, 90, 12)),
    Sample((1, 33, 21, 5, 5, 18, 100, 7, 8)),
]
FAMILIES = ("llama-gqa", "llama-bias", "opt", "opt-350m")
Build = Callable[..., Any]
CASES = [(c.name, component) for c in UNIT_CRITERIA.values() for component in c.components]
every_criterion = pytest.mark.parametrize(("criterion", "component"), CASES)
every_family = pytest.mark.parametrize("kind", FAMILIES)


def inputs_of(model: Any, modules: list[Any], samples: list[Sample]) -> list[list[Any]]:
    """Return what modules read and gave, (in, out) per sample, unpadded."""
    seen: list[list[Any]] = [[] for _ in modules]
    for sample in samples:
        hooks = [
            module.register_forward_hook(lambda _m, a, y, rows=rows: rows.append((a[0], y)))
            for module, rows in zip(modules, seen, strict=True)
        ]
        with torch.no_grad():
            model(torch.tensor([sample.input_ids]), use_cache=False)
        for hook in hooks:
            hook.remove()
    return seen


def columns_of(model: Any, component: str) -> list[tuple[Tensor, Tensor]]:
    """Return (weight, activations) of each output linear: (d_model, in) and (tokens, in)."""
    view = ModelView.of(model)
    linears = [la.mlp_out if component == "neurons" else la.attention_out for la in view.layers]
    found = inputs_of(model, linears, SAMPLES)
    return [
        (linear.weight.detach(), torch.cat([x.reshape(-1, x.shape[-1]) for x, _ in rows]))
        for linear, rows in zip(linears, found, strict=True)
    ]


def slow(model: Any, component: str, unit: Callable[[Tensor, Tensor], float]) -> Tensor:
    """Score each unit by a function of its columns (d_model, n) and activations (tokens, n)."""
    view = ModelView.of(model)
    wide = 1 if component == "neurons" else view.head_dim
    return torch.tensor([
        [unit(weight[:, i : i + wide], h[:, i : i + wide]) for i in range(0, h.shape[1], wide)]
        for weight, h in columns_of(model, component)
    ])  # fmt: skip


def slow_wanda(weight: Tensor, h: Tensor) -> float:
    scores = [(weight[:, j].norm() * h[:, j].norm()).item() for j in range(h.shape[1])]
    return math.sqrt(sum(s * s for s in scores))


def slow_flap(weight: Tensor, h: Tensor) -> float:
    return sum(
        (h[:, j].var(correction=0) * weight[:, j].norm() ** 2).item() for j in range(h.shape[1])
    )


@every_family
@pytest.mark.parametrize("component", ["neurons", "heads"])
@pytest.mark.parametrize(("criterion", "unit"), [("wanda", slow_wanda), ("flap", slow_flap)])
def test_scores_of_activations(
    tiny: Build, kind: str, component: Any, criterion: str, unit: Callable[[Tensor, Tensor], float]
):
    model = tiny(kind).double()
    expected = slow(model, component, unit)
    for size in (1, 2, 3):
        found = unit_scores(model, SAMPLES, component, criterion, batch_size=size)
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-5, atol=1e-6)


@every_family
def test_size_of_neurons_and_heads(tiny: Build, kind: str):
    model = tiny(kind).double().requires_grad_(False)
    view = ModelView.of(model)
    wide, sharing = view.head_dim, view.n_heads // view.n_kv_heads
    neurons, heads = (unit_scores(model, [], c, "magnitude") for c in ("neurons", "heads"))
    for at, layer in enumerate(view.layers):
        for j in range(view.d_mlp):
            rows = sum(float(linear.weight[j].square().sum()) for linear in layer.mlp_in)
            rows += float(layer.mlp_out.weight[:, j].square().sum())
            assert float(neurons[at, j]) == pytest.approx(math.sqrt(rows), rel=1e-12)
        attention: Any = layer.module.self_attn
        out = layer.attention_out.weight
        for head in range(view.n_heads):
            own, group = slice(head * wide, (head + 1) * wide), head // sharing
            shared = slice(group * wide, (group + 1) * wide)
            total = float(attention.q_proj.weight[own].square().sum() + out[:, own].square().sum())
            for linear in (attention.k_proj, attention.v_proj):
                total += float(linear.weight[shared].square().sum()) / sharing
            assert float(heads[at, head]) == pytest.approx(math.sqrt(total), rel=1e-12)


@every_family
def test_fisher_is_the_second_moment_of_activation_times_gradient(tiny: Build, kind: str):
    """By autograd alone: every token's log-probability, each unit's input times its gradient."""
    model = tiny(kind).double()
    view = ModelView.of(model)
    expected: dict[Any, Tensor] = {
        "neurons": torch.zeros(2, view.d_mlp).double(),
        "heads": torch.zeros(2, view.n_heads).double(),
    }
    taps: dict[Any, Tensor] = {}
    hooks = []

    def tap(key: Any, x: Tensor) -> tuple[Tensor]:
        taps[key] = x.detach().requires_grad_() if not x.requires_grad else x
        taps[key].retain_grad()
        return (taps[key],)

    for at, layer in enumerate(view.layers):
        for name, linear in (("neurons", layer.mlp_out), ("heads", layer.attention_out)):
            hooks.append(
                linear.register_forward_pre_hook(lambda _, a, key=(name, at): tap(key, a[0]))
            )
    for sample in SAMPLES:
        ids = torch.tensor([sample.input_ids])
        logits = model(ids, use_cache=False).logits
        logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]).sum().backward()
        for (name, at), x in taps.items():
            assert x.grad is not None
            product = (x.detach() * x.grad).reshape(len(sample.input_ids), -1)
            by_unit = product.unflatten(1, (expected[name].shape[1], -1)).sum(2)
            expected[name][at] += by_unit.square().sum(0) / len(SAMPLES)
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    for name, values in expected.items():
        found = unit_scores(model, SAMPLES, name, "fisher", batch_size=2)
        torch.testing.assert_close(found.double(), values, rtol=1e-4, atol=1e-7)
    layers = expected["neurons"].sum(1) + expected["heads"].sum(1)
    found = unit_scores(model, SAMPLES, "layers", "fisher", batch_size=2)
    torch.testing.assert_close(found.double(), layers, rtol=1e-4, atol=1e-7)


@every_family
def test_lrp_is_the_engines_second_moment(tiny: Build, kind: str):
    model = tiny(kind)
    options: Any = {"method": "lrp", "aggregate": "square", "batch_size": 1}
    found = score_samples(model, SAMPLES, "next-tokens", **options)
    for name in ("neurons", "heads"):
        scores = unit_scores(model, SAMPLES, name, "lrp", batch_size=2)
        torch.testing.assert_close(scores, found.get(name), rtol=1e-3, atol=1e-6)


@every_family
def test_block_influence(tiny: Build, kind: str):
    model = tiny(kind).double()
    layers = [layer.module for layer in ModelView.of(model).layers]
    expected = []
    for rows in inputs_of(model, layers, SAMPLES):
        angles = []
        for read, given in rows:
            y = (given[0] if isinstance(given, tuple) else given).reshape(-1, read.shape[-1])
            for a, b in zip(read.reshape(y.shape), y, strict=True):
                angles.append(1 - float(a @ b) / (float(a.norm()) * float(b.norm())))
        expected.append(sum(angles) / len(angles))
    for size in (1, 2, 3):
        found = unit_scores(model, SAMPLES, "layers", "block-influence", batch_size=size)
        assert found.shape == (2,)
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-6)


@every_family
@every_criterion
def test_every_score_is_finite_and_leaves_no_trace(
    tiny: Build, kind: str, criterion: str, component: Any
):
    model = tiny(kind).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores = unit_scores(model, SAMPLES, component, criterion)
    view = ModelView.of(model)
    shape = {"neurons": (2, view.d_mlp), "heads": (2, view.n_heads), "layers": (2,)}[component]
    assert scores.shape == shape
    assert bool((scores >= 0).all())
    assert not scores.requires_grad
    again = unit_scores(model, SAMPLES, component, criterion)
    assert torch.equal(again, scores)  # no dropout either
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    select_uniform(scores, component, 0.5, view)
    assert forecast_units(model, SAMPLES, component, criterion, 2).peak > 0


def test_random_is_by_seed(tiny_llama: Any):
    first, same, other = (
        unit_scores(tiny_llama, [], "neurons", "random", seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_formulas_by_hand():
    def row(*numbers: float) -> Tensor:
        return torch.tensor([numbers], dtype=torch.float64)

    assert magnitude(row(3.0), row(0.0, 4.0)).tolist() == [5.0]
    assert wanda(row(4.0), row(9.0)).tolist() == [6.0]
    assert wanda(row(4.0, 1.0), row(16.0, 36.0)).tolist() == [10.0]
    # h = 1, 3 at two tokens: mean 2, variance 1; a constant has none
    assert flap(row(5.0), row(10.0), row(4.0), 2).tolist() == [5.0]
    assert flap(row(5.0, 7.0), row(10.0, 18.0), row(4.0, 6.0), 2).tolist() == [5.0]
    assert flap(row(1.0), row(0.3**2 * 3), row(0.3 * 3), 3).item() >= 0  # rounding
    turned = block_influence(row(1.0, 0.0), torch.cat([row(0.0, 2.0)]))
    assert turned.tolist() == [1.0]
    assert block_influence(row(1.0, 2.0), row(3.0, 6.0)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((SAMPLES, "neurons", "wnada"), "did you mean 'wanda'"),
        ((SAMPLES, "neurons", "block-influence"), "scores layers, not neurons: .*magnitude, wanda"),
        ((SAMPLES, "layers", "wanda"), "scores neurons and heads, not layers: .*block-influence"),
        (([], "neurons", "wanda"), "there are no tokens"),
        (([], "layers", "block-influence"), "there are no tokens"),
        (([], "neurons", "fisher"), "nothing was scored"),
        (([Sample((1,) * 600)], "neurons", "wanda"), "600 tokens is longer"),
    ],
)
def test_what_cannot_be_scored_is_named(tiny_llama: Any, arguments: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        unit_scores(tiny_llama, *arguments)


@pytest.mark.parametrize("criterion", ["wanda", "fisher", "magnitude"])
def test_a_broken_model_is_named(tiny_llama: Any, criterion: str):
    with torch.no_grad():
        tiny_llama.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(ExciseError, match="NaN"):
        unit_scores(tiny_llama, SAMPLES, "neurons", criterion)


def test_the_table():
    for name, criterion in UNIT_CRITERIA.items():
        assert criterion.name == name
        assert criterion.summary
        assert criterion.source
        for component in criterion.components:
            assert get_unit_criterion(name, component) is criterion


COUNTED = [
    *((kind, c, False) for kind in ("llama-gqa", "llama-bias", "qwen3") for c in STRUCTURED),
    *((kind, c, True) for kind in ("llama-gqa", "llama-bias") for c in ("neurons", "heads")),
    *(("opt", c, False) for c in ("neurons", "layers")),
    ("opt", "neurons", True),
    ("qwen3", "heads", True),
    ("llama-untied", "neurons", False),
]


@pytest.mark.parametrize(("kind", "component", "compensated"), COUNTED)
def test_what_is_left_is_counted_before(tiny: Build, kind: str, component: Any, compensated: bool):
    model = tiny(kind)
    view = ModelView.of(model)
    mask = select_uniform(unit_scores(model, [], component, "random"), component, 0.5, view)
    expected = parameters_left(view, mask, compensated)
    means = mean_inputs_of(view, batches(SAMPLES, 2), component) if compensated else None
    shrink(model, mask, means)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
