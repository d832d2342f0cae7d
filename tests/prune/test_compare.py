"""Recipes side by side: each from the dense model, none with a trace of another."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.data import Sample
from excise.core.families import ModelView
from excise.core.memory import watched
from excise.prune.compare import compare_recipes, unchanged
from excise.prune.forecast import forecast_pruning
from excise.prune.recipe import RECIPES, Recipe, get_recipe
from excise.prune.run import prune_weights


def prompts() -> list[Sample]:
    draw = torch.Generator().manual_seed(1)
    return [Sample(tuple(torch.randint(3, 160, (11,), generator=draw).tolist())) for _ in range(4)]


def summed(model: Any) -> float:
    return sum(p.detach().double().abs().sum().item() for p in model.parameters())


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_each_starts_from_the_dense_model(kind: str, tiny: Callable[..., Any]):
    model = tiny(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names = ("best", "wanda", "fisher", "best-mask", "sparsegpt")
    recipes = {name: get_recipe(name, tune=1 if name == "best" else 0) for name in names}
    trials = list(compare_recipes(model, prompts(), recipes, lambda: summed(model), batch_size=2))
    assert [trial.name for trial in trials] == list(names)
    for trial in trials:  # as if it were alone, though gradients were taken once for three of them
        alone = tiny(kind)
        pruned = prune_weights(alone, prompts(), trial.recipe, batch_size=2)
        assert trial.found == summed(alone), trial.name
        assert trial.sparsity == pruned.sparsity
        assert trial.seconds > 0
        assert trial.peak >= 0
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_the_model_comes_back_after_an_error(tiny_opt: Any):
    before = {name: p.detach().clone() for name, p in tiny_opt.named_parameters()}

    def broken() -> None:
        with unchanged(tiny_opt):
            prune_weights(tiny_opt, prompts(), Recipe(update="obs"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert all(torch.equal(before[n], p) for n, p in tiny_opt.named_parameters())


def test_watching_memory():
    with watched() as held:
        block = torch.ones(256 << 20, dtype=torch.uint8)
        for _ in range(20):
            block += 1  # long enough to be looked at
    assert 128 << 20 < held.added < 512 << 20  # what was freed meanwhile counts against it
    assert held.most >= held.start


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_plans_follow_the_recipe(kind: str, tiny: Callable[..., Any]):
    model = tiny(kind)
    told = {name: forecast_pruning(model, prompts(), RECIPES[name], speed=1e9) for name in RECIPES}
    found = {name: forecast.parts for name, forecast in told.items()}
    weights = sum(linear.weight.numel() for linear in ModelView.of(model).layer_linears().values())
    hidden = 44 * 32 * 4  # of 44 tokens, 32 wide
    assert found["magnitude"]["buffers"] == found["magnitude"]["gradients"] == 0
    assert found["wanda"]["buffers"] == hidden
    assert found["best"]["buffers"] == 2 * hidden
    assert found["wanda"]["gradients"] == 0 < found["fisher"]["gradients"]
    assert found["wanda"]["scores"] == weights // 8
    assert found["fisher"]["scores"] == weights // 4 + 4 * weights  # two masks, and float32 sums
    assert found["best"]["scores"] == weights // 8 + 4 * weights
    grams = 4 * (3 * 32**2 + 24**2)
    assert found["sparsegpt"]["layer"] - found["wanda"]["layer"] == grams + 16 * 32**2
    assert told["wanda"].seconds < told["best-mask"].seconds < told["best"].seconds
    twice = forecast_pruning(model, prompts(), Recipe(steps=2), speed=1e9)
    assert twice.seconds == pytest.approx(2 * told["wanda"].seconds)
    assert all("peak memory about" in str(each) for each in told.values())
