"""Learned factors: the loss by hand, the margin by hand, and a planted behaviour."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.data import Sample
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.correction.data.behaviour import BehaviourSet
from excise.correction.ranking.contrast import contrast
from excise.correction.ranking.learned import LEAST, learned_edit, learned_factors, preference_loss
from excise.correction.ranking.weights import weight_contrast
from excise.correction.resume import Progress
from excise.correction.testbed.planted import outcome, planted_behaviour
from excise.edits.edit import Edit


def test_the_loss_is_that_of_direct_preference_optimisation():
    bad, good = torch.tensor([-1.0, 0.5]).double(), torch.tensor([0.25, 0.0]).double()
    wanted = [math.log(1 + math.exp(-0.7 * (g - b))) for b, g in ((-1.0, 0.25), (0.5, 0.0))]
    assert preference_loss(bad, good, 0.7).item() == pytest.approx(sum(wanted) / 2)


def samples(kind: str) -> BehaviourSet:
    torch.manual_seed(0)
    ids = torch.randint(3, 160, (3, 14, 9)).tolist()
    sets = [tuple(Sample(tuple(r), continuation=5) for r in part) for part in ids]
    return BehaviourSet(kind, sets[0], sets[1], kind == "paired", sets[2])


@pytest.mark.parametrize("component", ["neurons", "heads"])
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_what_is_learned_tells_the_sets_apart(tiny: Callable[..., Any], kind: str, component: Any):
    model = tiny(kind)
    view = ModelView.of(model)
    width = view.d_mlp if component == "neurons" else view.n_heads
    units = [(layer, unit) for layer in range(len(view.layers)) for unit in range(width)]
    before = {name: p.clone() for name, p in model.named_parameters()}
    for sets in map(samples, ("paired", "unpaired")):
        found = learned_factors(model, sets, units, component, price=0.01, steps=20)
        assert set(found) <= set(units)
        assert all(0 <= factor < 1 - LEAST for factor in found.values())
        apart = margin(model, sets)
        with Edit.of_units(component, found).applied(model):
            assert margin(model, sets) > apart
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_sets_of_other_sizes_are_paired_at_random(tiny_opt: Any):
    sets = samples("unpaired")
    few = BehaviourSet("few", sets.undesired[:5], sets.general, False, sets.kept[:2])
    assert learned_factors(tiny_opt, few, [(0, 3), (1, 5)], "neurons", price=0.01, steps=3)


def test_checkpointed_layers_learn_the_same(tiny_llama: Any):
    units = [(layer, unit) for layer in range(2) for unit in range(4)]
    learn = lambda: learned_factors(tiny_llama, samples("paired"), units, "heads", steps=5)  # noqa: E731
    expected = learn()
    new = getattr(tiny_llama, "activation_checkpointing_enable", None)
    for reentrant in (True, False):
        (new or tiny_llama.gradient_checkpointing_enable)({"use_reentrant": reentrant})
        assert learn() == expected


def test_numbers_that_are_not_finite_are_named(tiny: Callable[..., Any]):
    model = tiny("opt")
    with torch.no_grad():
        ModelView.of(model).layers[1].mlp_out.weight[0, 0] = torch.inf
    with pytest.raises(ExciseError, match="not finite"):
        learned_factors(model, samples("paired"), [(0, 3)], "neurons", steps=1)


def margin(model: Any, sets: BehaviourSet) -> float:
    """Log-probability of general continuations less that of undesired ones, one by one."""
    total = []
    for part in (sets.general, sets.undesired):
        values = []
        for sample in part:
            ids = torch.tensor([sample.input_ids])
            with torch.no_grad():
                said = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(sample.input_ids) - sample.continuation
            values += [said[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
        total.append(sum(values))
    return total[0] - total[1]


def test_a_high_price_leaves_the_model_alone(tiny_opt: Any):
    units = [(0, 3), (1, 5)]
    sets = samples("paired")
    assert learned_factors(tiny_opt, sets, units, "neurons", price=1e6, steps=40) == {}
    ranked = contrast(tiny_opt, sets)
    with pytest.raises(ExciseError, match="none of 2 neurons is damped"):
        learned_edit(tiny_opt, sets, ranked, 2, price=1e6, steps=40)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_units_that_are_ranked_first_are_damped_as_far_as_needed(family: str):
    planted = planted_behaviour(family, 0)
    ranked = contrast(planted.model, planted.behaviour)
    edit = learned_edit(planted.model, planted.behaviour, ranked, 16)
    assert set(edit.neurons) <= set(ranked.top(16))
    done = outcome(edit, planted)
    assert done.removed > 0.9
    assert done.rise < 0.01


def test_what_was_learned_and_written_is_kept_as_it_was(tiny_opt: Any, tmp_path: Any):
    sets = samples("paired")
    ranked = contrast(tiny_opt, sets)
    edit = learned_edit(tiny_opt, sets, ranked, 4, steps=3)
    progress, asked = Progress(tmp_path / ".out.progress"), {"n": 1}
    progress.behaviour(asked, lambda: sets)
    progress.edit("learned-4", asked, lambda: edit)
    progress.contrast(asked, lambda: ranked)
    assert progress.behaviour(asked, fail) == sets
    assert progress.edit("learned-4", asked, fail).digest == edit.digest
    assert progress.contrast(asked, fail).top(5) == ranked.top(5)
    with pytest.raises(ExciseError, match="with other n: repeat"):
        progress.contrast({"n": 2}, lambda: ranked)
    progress.forget()
    assert list(tmp_path.iterdir()) == []
    weights = weight_contrast(tiny_opt, sets, keep=9)
    progress.weights(asked, lambda: weights)
    kept = progress.weights(asked, fail)
    assert (kept.n, kept.config) == (weights.n, weights.config)
    assert kept.edit(9).digest == weights.edit(9).digest


def fail() -> Any:
    raise AssertionError("this was kept")
