"""What a pruning run will need, before it starts: memory counted, time estimated."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from ..core.data import Sample
from ..core.families import ModelView
from ..core.memory import Forecast, held_with, on_disk
from ..lrp.fitter import RelevanceFitter
from ..lrp.run import activation_bytes
from .calibrate import passes
from .choice import check_fit, linears_of, survey_needs
from .recipe import Recipe
from .scopes import parse_scope


def forecast_pruning(
    model: Any, samples: Sequence[Sample], recipe: Recipe, batch_size: int = 4, speed: float = 0.0
) -> Forecast:
    """Count what pruning will take. The model is not run.

    Time is the number of operations over the machine's speed: right to a factor of two.

    Args:
        model: The model.
        samples: Calibration samples.
        recipe: How it will be pruned.
        batch_size: Samples per pass.
        speed: Multiplications and additions per second; 0 measures it on one product.

    Returns:
        Parts are bytes: `held` now, the model among them unless it lies on disk; `scores`, of what
        the whole model decides (masks, statistics of weights); `gradients`, of activations while
        they are taken; `layer`, of one decoder layer with its gram matrices, the copies that
        scoring and updating make and a batch, which is what the device holds; `buffers`, of the
        hidden states of all samples (those a layer reads, and the dense model's last ones if
        tuning fits them); and `weights on disk, not counted`, of mapped files, which the system
        pages in and out. Gradients are not taken while a layer is pruned.

    Raises:
        ExciseError: A pattern that does not fit the model.
    """
    view = ModelView.of(model)
    check_fit(recipe, view)
    size = view.embedding.weight.element_size()
    tokens = sum(len(sample.input_ids) for sample in samples)
    longest = max(len(sample.input_ids) for sample in samples)
    rows = min(batch_size, len(samples))
    weights = sum(linear.weight.numel() for linear in view.layer_linears().values())
    needs = survey_needs(recipe)
    gathered = passes(needs)
    gradients = 0
    if gathered or recipe.tune:
        fitter = RelevanceFitter(model, "next-tokens", "lrp", (), ("*",), "square")
        gradients = activation_bytes(fitter, (rows if gathered else 1) * longest)
    kept = sum(name in needs for name in gathered)
    bits = 2 if parse_scope(recipe.scope).kind == "global" else 1  # per weight, of masks
    parts = {
        "held": held_with(model),
        "scores": weights * bits // 8 + 4 * weights * kept,
        "gradients": gradients,
        "layer": _layer_bytes(view, recipe, rows * longest),
        "buffers": tokens * view.d_model * size * (recipe.sees_inputs + bool(recipe.tune)),
        "weights on disk, not counted": on_disk(model),
    }
    peak = parts["held"] + parts["scores"] + parts["buffers"]
    peak += max(gradients, parts["layer"])
    seconds = _operations(view, recipe, tokens) / (speed or _speed(view.embedding.weight))
    return Forecast(peak, seconds, parts=parts)


def _layer_bytes(view: ModelView, recipe: Recipe, tokens: int) -> int:
    """Count what a layer takes while it is pruned.

    Args:
        view: The model.
        recipe: How it is pruned.
        tokens: Of a batch.
    """
    size = view.embedding.weight.element_size()
    sizes = [linear.weight.numel() for linear in linears_of(view.layers[0], view).values()]
    total = 16 * max(sizes)  # scores and their order
    if recipe.sees_inputs:
        total += (sum(sizes) + tokens * (6 * view.d_mlp + 8 * view.d_model)) * size
    if recipe.updates:
        squares = [wide**2 for wide in _read(view)]
        total += 4 * sum(squares) + 16 * max(squares)
    return total


def _operations(view: ModelView, recipe: Recipe, tokens: int) -> float:
    """Count multiplications and additions over all layers and samples."""
    shapes = [linear.weight.shape for linear in view.layer_linears().values()]
    forward = 2.0 * tokens * sum(high * wide for high, wide in shapes)
    needs = survey_needs(recipe)
    surveys = recipe.steps * (-(-len(view.layers) // recipe.rescore) if recipe.rescore else 1)
    each = 4 * len(passes(needs)) + ("input_square" in needs)
    total = surveys * each * forward  # forward, backward and outer products, or forward alone
    if recipe.sees_inputs:
        total += 2 * recipe.steps * forward
    if recipe.updates:
        times = 3 + (recipe.iterations if recipe.update == "admm" else 1)
        solving = sum(2.0 * times * high * wide**2 + 2.0 * wide**3 for high, wide in shapes)
        read = _read(view)
        gram = 2.0 * tokens * len(view.layers) * sum(wide**2 for wide in read)
        total += recipe.steps * (solving + gram)
    head = 2.0 * tokens * view.embedding.weight.numel()
    return total + recipe.tune * 4 * (forward + head)


def _read(view: ModelView) -> list[int]:
    """Return the widths of the gram matrices of a layer: one for linears that read the same."""
    layer = view.layers[0]
    inner = (layer.attention_out.in_features, layer.mlp_out.in_features)
    return [view.d_model, view.d_model, *inner]


def _speed(like: torch.Tensor) -> float:
    """Time a matrix product on the model's device and in its precision: the best of three."""
    side = 768
    square = torch.ones(side, side, dtype=like.dtype, device=like.device)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        float((square @ square)[0, 0])  # waits for the device
        best = max(best, 2.0 * side**3 / (time.perf_counter() - started))
    return best
