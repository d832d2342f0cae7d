"""Contrasts: maths against plain second versions, every method on both families, edits."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from excise.core.data import Sample
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.correction.data.behaviour import BehaviourSet
from excise.correction.ranking.contrast import CONTRASTS, Contrast, contrast, with_rank
from excise.correction.ranking.maths import (
    auroc,
    benefit_per_cost,
    difference,
    ranking_stability,
    root_mean_square,
    top_units,
)
from excise.correction.ranking.sources import SEEDS, activations, highest, mean_size, relevances
from excise.correction.ranking.weights import weight_contrast
from hypothesis import given
from hypothesis import strategies as st


def behaviour(n: int = 6, paired: bool = True, seed: int = 0) -> BehaviourSet:
    """Random samples of several lengths, with prompts."""
    draw = random.Random(seed)

    def some(n: int) -> tuple[Sample, ...]:
        lengths = [draw.randrange(4, 9) for _ in range(n)]
        return tuple(
            Sample(tuple(draw.randrange(3, 160) for _ in range(size)), continuation=size - 2)
            for size in lengths
        )

    return BehaviourSet("random", some(n), some(n), paired, some(n + 1))


def explained(model: Any, sample: Sample, log_probability: bool) -> torch.Tensor:
    """Mean of what is explained of one sample, slowly."""
    logits = model(input_ids=torch.tensor([sample.input_ids]), use_cache=False).logits[0]
    total = logits.new_zeros(())
    for at in range(len(sample.input_ids) - sample.continuation, len(sample.input_ids)):
        said = logits[at - 1].log_softmax(-1) if log_probability else logits[at - 1]
        total = total + said[sample.input_ids[at]]
    return total / sample.continuation


def seen(module: Any) -> tuple[list[torch.Tensor], Any]:
    """Return a list that gets what a module reads, and the handle of its hook."""
    kept: list[torch.Tensor] = []

    def see(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        kept.append(args[0])

    return kept, module.register_forward_pre_hook(see)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("seed", ["logprob", "logit"])
def test_gradient_scores_are_per_explained_token(tiny: Callable[..., Any], kind: str, seed: str):
    model = tiny(kind)
    samples = behaviour().undesired
    found = relevances(model, samples, "neurons", "gradient-x-activation", SEEDS[seed], 4)
    layer = ModelView.of(model).layers[1]
    for sample, scores in zip(samples, found, strict=True):
        kept, handle = seen(layer.mlp_out)
        value = explained(model, sample, seed == "logprob")
        handle.remove()
        (grad,) = torch.autograd.grad(value, kept[0])
        wanted = (grad * kept[0]).view(-1, grad.shape[-1]).sum(0)
        torch.testing.assert_close(scores[1], wanted.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("paired", [True, False])
def test_difference_and_error(paired: bool):
    torch.manual_seed(0)
    first, second = torch.randn(7, 2, 3).double(), torch.randn(7, 2, 3).double() + 1
    mean, error = difference(first, second, paired)
    for unit in ((0, 0), (1, 2)):
        a, b = (values[:, unit[0], unit[1]].tolist() for values in (first, second))
        assert mean[unit].item() == pytest.approx(sum(a) / 7 - sum(b) / 7)

        def variance(values: list[float]) -> float:
            middle = sum(values) / len(values)
            return sum((v - middle) ** 2 for v in values) / (len(values) - 1)

        if paired:
            wanted = variance([x - y for x, y in zip(a, b, strict=True)]) / 7
        else:
            wanted = variance(a) / 7 + variance(b) / 7
        assert error[unit].item() == pytest.approx(wanted**0.5)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8),
       st.lists(st.integers(-3, 3), min_size=1, max_size=8))  # fmt: skip
def test_auroc_counts_pairs(first: list[int], second: list[int]):
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first for b in second]
    found = auroc(*(torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (first, second)))
    assert found.item() == pytest.approx(sum(wins) / len(wins))


def test_units_that_do_nothing_stay_below_those_that_do():
    benefit = torch.tensor([[1e-6, 1.0, -1.0, 0.0]])
    cost = torch.tensor([[1e-9, 0.5, 1.0, 0.4]])
    assert top_units(benefit_per_cost(benefit, cost, 0.0), 4)[0] == (0, 0)
    assert top_units(benefit_per_cost(benefit, cost, 1.0), 4)[0] == (0, 1)
    assert bool(benefit_per_cost(benefit, torch.zeros(1, 4), 1.0).isfinite().all())


def test_stable_rankings_stay_and_random_ones_do_not():
    torch.manual_seed(0)
    noise = torch.randn(40, 2, 50)
    signal = noise.clone()
    signal[:, 0, :5] += 10

    def rank(undesired: torch.Tensor, general: torch.Tensor) -> torch.Tensor:
        return difference(undesired, general, False)[0]

    other = torch.randn(40, 2, 50)
    assert ranking_stability(signal, other, False, rank, 5) == 1.0
    assert ranking_stability(noise, other, False, rank, 5) < 0.7


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("component", ["neurons", "heads"])
@pytest.mark.parametrize("method", list(CONTRASTS))
def test_every_contrast_ends_in_an_edit(
    tiny: Callable[..., Any], kind: str, component: Any, method: str
):
    model = tiny(kind)
    found = contrast(model, behaviour(), method, component, protect=0.1)
    view = ModelView.of(model)
    shape = (len(view.layers), view.d_mlp if component == "neurons" else view.n_heads)
    assert found.scores.shape == found.low.shape == found.protected.shape == shape
    assert bool(found.scores.isfinite().all())
    assert bool((found.low <= found.scores).all())
    top = found.top(3)
    values = found.low.masked_fill(found.protected, -torch.inf)
    assert [values[unit].item() for unit in top] == values.flatten().sort().values[-3:].flip(
        0
    ).tolist()
    edit = found.edit(3, 0.5)
    assert getattr(edit, component) == dict.fromkeys(sorted(top), 0.5)


def test_ours_is_paired_difference_over_cost(tiny_llama: Any):
    sets = behaviour()
    found = contrast(tiny_llama, sets, c=2.0, z=1.5, protect=0.1, seed="logprob")
    parts = [
        relevances(tiny_llama, samples, "neurons", "lrp", SEEDS["logprob"], 3)
        for samples in (sets.undesired, sets.general, sets.kept)
    ]
    cost = root_mean_square(parts[2])
    mean, error = difference(parts[0], parts[1], True)
    torch.testing.assert_close(found.scores, mean / (cost + 2 * cost.median()))
    low = (mean - 1.5 * error) / (cost + 2 * cost.median())
    torch.testing.assert_close(found.low, low)
    assert found.protected.sum() == int(0.1 * cost.numel())
    assert cost[found.protected].min() >= cost[~found.protected].max()


def test_protected_units_are_never_chosen():
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    protected = torch.tensor([[True, False, False]])
    found = Contrast("heads", scores, scores.flip(1), protected, {}, "scores")
    assert found.top(2) == [(0, 1), (0, 2)]
    assert with_rank(found, "low").top(1) == [(0, 2)]
    for k in (0, 3):
        with pytest.raises(ExciseError, match="1 to 2 heads"):
            found.top(k)


def test_activations_are_those_that_predict(tiny_opt: Any):
    samples = behaviour().undesired
    layer = ModelView.of(tiny_opt).layers[0]
    for reduce in (mean_size, highest):
        found = activations(tiny_opt, samples, "neurons", reduce, 4)
        for sample, row in zip(samples, found, strict=True):
            kept, handle = seen(layer.mlp_out)
            tiny_opt(input_ids=torch.tensor([sample.input_ids]))
            handle.remove()
            x = kept[0].view(len(sample.input_ids), -1).detach()
            start = len(sample.input_ids) - sample.continuation
            wanted = x.amax(0) if reduce is highest else x[start - 1 : -1].abs().mean(0)
            torch.testing.assert_close(row[0], wanted, rtol=1e-4, atol=1e-6)


def test_aura_has_factors_of_its_own(tiny_llama: Any):
    found = contrast(tiny_llama, behaviour(), "aura")
    own = found.edit(4, "own").neurons
    assert set(own) == set(found.top(4))
    for unit, factor in own.items():
        assert factor == pytest.approx(1 - 2 * max(0.0, found.scores[unit].item()))
    with pytest.raises(ExciseError, match="no factors of its own"):
        replace(found, factors=None).edit(1, "own")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "lpr"}, "did you mean 'lrp'"),
        ({"component": "layers"}, "known are neurons, heads"),
        ({"seed": "odds"}, "unknown seed"),
        ({"protect": 1.0}, "protect"),
        ({"c": -1.0}, "no negative"),
    ],
)
def test_bad_options(tiny_llama: Any, options: dict[str, Any], said: str):
    with pytest.raises(ExciseError, match=said):
        contrast(tiny_llama, behaviour(), **options)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_weights_of_a_neuron_add_up_to_it(tiny: Callable[..., Any], kind: str):
    """Relevance of a neuron is that of the weights that it goes out by."""
    model, sets = tiny(kind), behaviour(paired=False)
    last = "mlp.down_proj" if kind == "llama-gqa" else "fc2"
    found = weight_contrast(model, sets, [f"*{last}"], "gradient", c=1e9)
    neurons = contrast(model, sets, "gradient-difference", protect=0, seed="logit").scores
    for name, (indices, values) in found.ranked.items():
        scores = torch.empty_like(values).index_copy_(0, indices, values)
        scores = scores.view(model.get_parameter(name).shape)
        # with a large c every element is divided by about the same
        wanted = neurons[int(name.split(".layers.")[1].split(".")[0])]
        columns = scores.double().sum(0)
        ratio = columns @ wanted.double() / wanted.double().square().sum()
        torch.testing.assert_close(
            columns, wanted.double() * ratio, rtol=1e-3, atol=1e-3 * float(ratio)
        )


def test_top_weights_are_the_highest_of_all_matrices(tiny_llama: Any):
    found = weight_contrast(tiny_llama, behaviour())
    top = found.top(50)
    everything = torch.cat([values for _, values in found.ranked.values()])
    assert found.n == len(everything)
    some = found.leading(50)
    kept = torch.cat([values for _, values in some.ranked.values()])
    assert kept.sort().values.tolist() == everything.sort().values[-50:].tolist()
    for name, (indices, values) in some.ranked.items():
        assert values.tolist() == sorted(values.tolist(), reverse=True)
        assert top[name].tolist() == sorted(indices.tolist())
    edit = found.edit(50, 0.5)
    assert edit.n_components == 50
    with edit.applied(tiny_llama):
        pass
    with pytest.raises(ExciseError, match="weights to choose from"):
        found.top(0)
    with pytest.raises(ExciseError, match="1 to 50 weights to choose from"):
        some.top(51)
    with pytest.raises(ExciseError, match="no weight matrix matches"):
        weight_contrast(tiny_llama, behaviour(), ["*nothing*"])


def test_both_seeds_are_added_in_units_of_their_size(tiny_llama: Any):
    sets = behaviour()
    one, other, both = (contrast(tiny_llama, sets, seed=s) for s in ("logprob", "logit", "both"))
    sizes = [found.scores.square().mean().sqrt() for found in (one, other)]
    for name in ("scores", "low"):
        wanted = getattr(one, name) / sizes[0] + getattr(other, name) / sizes[1]
        torch.testing.assert_close(getattr(both, name), wanted)
