"""Pruning runs, re-derived with nothing but hooks on the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.data import Sample, collate
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.prune.criteria import CRITERIA
from excise.prune.progress import Progress
from excise.prune.recipe import RECIPES, Recipe, get_recipe
from excise.prune.run import prune_weights
from torch import Tensor


KINDS = ("llama-gqa", "opt")


def prompts(lengths: tuple[int, ...] = (9, 7, 12, 5, 9), seed: int = 0) -> list[Sample]:
    draw = torch.Generator().manual_seed(seed)
    return [Sample(tuple(torch.randint(3, 160, (n,), generator=draw).tolist())) for n in lengths]


def read(model: Any, samples: list[Sample]) -> dict[str, Tensor]:
    """Return what each linear of the layers reads, (tokens, in): one sample at a time."""
    seen: dict[str, list[Tensor]] = {}
    linears = ModelView.of(model).layer_linears()
    names: dict[Any, str] = {linear: path for path, linear in linears.items()}

    def see(linear: Any, given: Any) -> None:
        seen.setdefault(names[linear], []).append(given[0].reshape(-1, given[0].shape[-1]))

    handles = [linear.register_forward_pre_hook(see) for linear in names]
    with torch.no_grad():
        for sample in samples:
            model(torch.tensor([sample.input_ids]))
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in seen.items()}


def slow_wanda(model: Any, samples: list[Sample], gone: float, sequential: bool) -> None:
    """Prune by Wanda: a whole forward pass per layer, a sort per row."""
    view = ModelView.of(model)
    inputs = read(model, samples)
    for layer in view.layers:
        if sequential:
            inputs = read(model, samples)
        for path, linear in view.layer_linears().items():
            if not path.startswith(layer.path + "."):
                continue
            norm = inputs[path].square().sum(0).sqrt()
            for row in linear.weight.data:
                lowest = (row.abs() * norm).argsort()[: round(gone * len(row))]
                row[lowest] = 0.0


@pytest.mark.parametrize("order", ["oneshot", "sequential"])
@pytest.mark.parametrize("kind", KINDS)
def test_wanda_is_that_of_whole_forward_passes(kind: str, order: Any, tiny: Callable[..., Any]):
    samples = prompts()
    model, slow = tiny(kind).double(), tiny(kind).double()
    pruned = prune_weights(model, samples, Recipe(order=order), batch_size=2)
    slow_wanda(slow, samples, 0.5, order == "sequential")
    for (name, parameter), expected in zip(
        model.named_parameters(), slow.parameters(), strict=True
    ):
        assert torch.equal(parameter, expected), name
        if name in pruned.mask.keep:
            assert torch.equal(pruned.mask.keep[name], expected != 0)
    assert pruned.sparsity == 0.5


def fisher(model: Any, samples: list[Sample]) -> dict[str, Tensor]:
    """Return the sum over tokens of `(x_j g_i)^2`, token by token: one backward pass each."""
    linears = ModelView.of(model).layer_linears()
    names: dict[Any, str] = {linear: path for path, linear in linears.items()}
    total = {path: torch.zeros_like(linear.weight) for path, linear in linears.items()}
    for sample in samples:
        ids = torch.tensor([sample.input_ids])
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def keep(linear: Any, given: Any, output: Tensor, kept: Any = kept) -> None:
            output.retain_grad()
            kept[names[linear]] = (given[0], output)

        handles = [linear.register_forward_hook(keep) for linear in names]
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        logits[torch.arange(len(ids[0]) - 1), ids[0, 1:]].sum().backward()
        for path, (x, y) in kept.items():
            x, g = x.detach().reshape(-1, x.shape[-1]), y.grad
            assert g is not None
            for a, b in zip(x, g.reshape(len(x), -1), strict=True):
                total[path] += torch.outer(b, a).square()
        for handle in handles:
            handle.remove()
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_global_fisher_is_one_sort_over_all_weights(kind: str, tiny: Callable[..., Any]):
    samples = prompts()
    model, slow = tiny(kind).double(), tiny(kind).double()
    pruned = prune_weights(model, samples, Recipe(0.3, "fisher", "global", "oneshot"), batch_size=2)
    linears = ModelView.of(slow).layer_linears()
    scores = {p: linears[p].weight.abs() * f.sqrt() for p, f in fisher(slow, samples).items()}
    every = torch.cat([score.flatten() for score in scores.values()])
    threshold = every.sort().values[round(0.3 * len(every)) - 1]
    for path, score in scores.items():
        assert torch.equal(pruned.mask.keep[f"{path}.weight"], score > threshold), path


@pytest.mark.parametrize("kind", KINDS)
def test_row_budgets_are_those_of_the_global_mask(kind: str, tiny: Callable[..., Any]):
    samples = prompts()
    whole = prune_weights(tiny(kind), samples, Recipe(0.4, "fisher", "global", "oneshot"))
    for criterion in ("wanda", "fisher"):
        rows = prune_weights(tiny(kind), samples, Recipe(0.4, criterion, budget="fisher"))
        for name, keep in whole.mask.keep.items():
            assert torch.equal(rows.mask.keep[name].sum(1), keep.sum(1)), name
            if criterion == "fisher":  # inside rows it chooses what it chose over all
                assert torch.equal(rows.mask.keep[name], keep)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_cuts_what_it_says(name: str, kind: str, tiny: Callable[..., Any]):
    model = tiny(kind)
    before = {path: p.detach().clone() for path, p in model.named_parameters()}
    recipe = get_recipe(name, sparsity=0.4)
    pruned = prune_weights(model, prompts(), recipe, batch_size=2)
    linears = {f"{path}.weight" for path in ModelView.of(model).layer_linears()}
    assert set(pruned.mask.keep) == linears
    assert abs(pruned.sparsity - 0.4) < 0.03  # rows of 24 lose 10
    for path, parameter in model.named_parameters():
        if path not in linears:
            tuned = recipe.tune and parameter.ndim == 1
            assert tuned or torch.equal(parameter, before[path]), path
        else:
            assert torch.equal(parameter == 0, ~pruned.mask.keep[path]), path
            if not recipe.updates:
                kept = pruned.mask.keep[path]
                assert torch.equal(parameter[kept], before[path][kept])
    assert set(pruned.errors) == (
        set(ModelView.of(model).layer_linears()) if recipe.updates else set()
    )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(scope="2:4", update="obs"),
        Recipe(criterion="sparsegpt", scope="2:4"),
        Recipe(scope="block:4x4", criterion="lrp-wanda", order="oneshot"),
        Recipe(scope="layer", criterion="wanda-lrp", budget="fisher", budget_unit="matrix",
               floor=0.4, ceiling=0.6),
        Recipe(update="admm"),
        Recipe(criterion="lrp", budget="lrp", rescore=1),
        Recipe(criterion="wanda-fisher", budget="fisher", steps=3),
        Recipe(criterion="lrp-signed", order="oneshot"),
        Recipe(criterion="lrp-abs", order="oneshot"),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_other_ways(kind: str, recipe: Recipe, tiny: Callable[..., Any]):
    model = tiny(kind)
    pruned = prune_weights(model, prompts(), recipe, batch_size=3)
    assert abs(pruned.sparsity - recipe.goal) < 0.005
    for name, keep in pruned.mask.keep.items():
        if recipe.scope == "2:4":
            assert bool((keep.view(-1, 4).sum(1) == 2).all()), name
        if recipe.ceiling < 1:
            assert 0.4 <= 1 - keep.float().mean() <= 0.6
        assert torch.equal(dict(model.named_parameters())[name] == 0, ~keep)


@pytest.mark.parametrize("update", ["obs", "admm"])
@pytest.mark.parametrize("kind", KINDS)
def test_updates_lose_less_than_none(kind: str, update: Any, tiny: Callable[..., Any]):
    """On the inputs of the first layer, which no cut has touched."""
    losses = []
    for how in ("none", update):
        model, dense = tiny(kind).double(), tiny(kind).double()
        samples = prompts((40, 40, 40))
        prune_weights(model, samples, Recipe(update=how))
        inputs = read(dense, samples)
        found = {}
        for path, linear in ModelView.of(model).layers[0].module.named_modules():
            if isinstance(linear, torch.nn.Linear):
                path = f"{ModelView.of(model).layers[0].path}.{path}"
                before = dense.get_submodule(path).weight
                lost = inputs[path] @ (linear.weight - before).detach().T
                found[path] = lost.square().sum().item()
        losses.append(found)
    assert all(losses[1][path] < losses[0][path] for path in losses[0])


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(order="oneshot", update="obs"),
        Recipe(budget="fisher", update="admm", rescore=1),
        Recipe(criterion="fisher", scope="global", floor=0.1, steps=2),
        Recipe(budget="owl", budget_unit="matrix"),
        get_recipe("best", tune=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_goes_on(
    kind: str,
    recipe: Recipe,
    tiny: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Stopped behind each layer in turn, or while its file is written."""
    samples, whole = prompts(), tiny(kind)
    expected = prune_weights(whole, samples, recipe)
    save = Progress.save_layer

    def stop(self: Any, *given: Any) -> None:
        save(self, *given)
        raise KeyboardInterrupt

    for _ in range(2 * recipe.steps):
        monkeypatch.setattr(Progress, "save_layer", stop)
        with pytest.raises(KeyboardInterrupt, match="repeat the command"):
            prune_weights(tiny(kind), samples, recipe, resume=tmp_path / "p")
    monkeypatch.setattr(Progress, "save_layer", save)
    model = tiny(kind)
    pruned = prune_weights(model, samples, recipe, resume=tmp_path / "p")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(whole.named_parameters())[name]), name
    assert all(torch.equal(k, expected.mask.keep[n]) for n, k in pruned.mask.keep.items())


def test_progress_of_another_run_is_refused(tiny_opt: Any, tmp_path: Path):
    (tmp_path / "p").mkdir()  # a run that was killed at once
    prune_weights(tiny_opt, prompts(), Recipe(), resume=tmp_path / "p")
    said = "another run, with other model, sparsity: repeat"  # the model is pruned by now
    with pytest.raises(ExciseError, match=said):
        prune_weights(tiny_opt, prompts(), Recipe(0.6), resume=tmp_path / "p")
    with pytest.raises(ExciseError, match="with other dtype, model: repeat"):
        prune_weights(tiny_opt.to(torch.bfloat16), prompts(), Recipe(), resume=tmp_path / "p")
    (tmp_path / "p" / "step-0-layer-000.safetensors").write_bytes(b"broken")
    (tmp_path / "p" / "recipe.json").unlink()
    with pytest.raises(ExciseError, match="does not say which run"):
        prune_weights(tiny_opt, prompts(), Recipe(), resume=tmp_path / "p")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_can_compare_all_layers(criterion: str, tiny: Callable[..., Any]):
    for recipe in (Recipe(0.3, criterion, "global"), Recipe(0.3, budget=criterion)):
        pruned = prune_weights(tiny("llama-gqa"), prompts(), recipe)
        assert pruned.sparsity == pytest.approx(0.3, abs=1e-4)


def test_random_masks_follow_the_seed(tiny: Callable[..., Any]):
    for scope in ("row", "global"):
        recipe = Recipe(criterion="random", scope=scope)
        found = [prune_weights(tiny("opt"), prompts(), recipe, seed=s).mask.keep for s in (0, 0, 1)]
        same = [all(torch.equal(found[0][n], other[n]) for n in other) for other in found[1:]]
        assert same == [True, False], scope


def test_batching_and_padding_make_no_difference(tiny: Callable[..., Any]):
    samples = prompts()
    for kind in KINDS:
        alone, together = tiny(kind).double(), tiny(kind).double()
        recipe = Recipe(criterion="wanda-fisher", budget="fisher", update="admm")
        prune_weights(alone, samples, recipe, batch_size=1)
        prune_weights(together, samples, recipe, batch_size=5)
        for one, other in zip(alone.parameters(), together.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_nothing_gone_is_nothing_touched(tiny: Callable[..., Any]):
    for name in RECIPES:
        model, dense = tiny("llama-gqa"), tiny("llama-gqa")
        prune_weights(model, prompts(), get_recipe(name, sparsity=0.0))
        for one, other in zip(model.parameters(), dense.parameters(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"criterion": "wnada"}, "did you mean 'wanda'"),
        ({"scope": "rows"}, "did you mean 'row'"),
        ({"order": "sideways"}, "unknown order 'sideways'"),
        ({"update": "sgd"}, "known are admm, none, obs"),
        ({"budget": "owls"}, "did you mean 'owl'"),
        ({"budget_unit": "head"}, "unknown budget unit"),
        ({"sparsity": 1.5}, "sparsity is 1.5"),
        ({"sparsity": 1.0}, "leaves no model"),
        ({"steps": 0}, "steps is 0"),
        ({"scope": "2:4", "budget": "owl"}, "leaves nothing to a budget"),
        ({"scope": "2:4", "steps": 2}, "one step"),
        ({"criterion": "sparsegpt"}, "scope layer, or N:M"),
        ({"criterion": "sparsegpt", "scope": "layer", "budget": "owl"}, "--budget-unit matrix"),
        ({"order": "oneshot", "rescore": 2}, "--order sequential"),
        ({"criterion": "sparsegpt", "scope": "layer", "steps": 2}, "at once"),
        ({"criterion": "sparsegpt", "scope": "layer", "update": "admm"}, "at once"),
        ({"budget": "owl"}, "--budget-unit matrix"),
        ({"floor": 0.1}, "bound a --budget"),
        ({"budget": "fisher", "floor": 0.3, "steps": 2}, "in 2 steps"),
        ({"damping": 0.1}, "--damping is for an update"),
        ({"damping": -1.0, "update": "obs"}, "damping is -1"),
    ],
)
def test_recipes_that_cannot_be(fields: dict[str, Any], said: str):
    with pytest.raises(ExciseError, match=said):
        Recipe(**fields)


def test_bad_calibration(tiny_llama: Any):
    with pytest.raises(ExciseError, match="nothing to calibrate on"):
        prune_weights(tiny_llama, [], Recipe())
    with pytest.raises(ExciseError, match="513 tokens is longer"):
        prune_weights(tiny_llama, [Sample((3,) * 513)], Recipe())


def test_training_flags_come_back(tiny_opt: Any):
    tiny_opt.train()
    prune_weights(tiny_opt, prompts(), Recipe(budget="fisher"))
    assert all(module.training for module in tiny_opt.modules())
    assert collate(prompts()).input_ids.shape == (5, 12)
