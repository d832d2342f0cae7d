"""What a pruning run will need, before it starts: memory counted, time estimated."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.data import Sample
from ..core.families import ModelView
from ..core.memory import readable
from ..lrp.fitter import RelevanceFitter
from ..lrp.run import activation_bytes
from .calibrate import PASSES
from .choice import linears_of, survey_needs
from .recipe import Recipe
from .scopes import parse_scope


@dataclass(frozen=True)
class Forecast:
    """Bytes and seconds, each by what takes them."""

    model: int
    """Bytes of the weights."""
    layer: int
    """Bytes of one decoder layer with its masks, gram matrices and the copies an update makes: what
    the device holds, together with a batch."""
    buffers: int
    """Bytes of the hidden states of all samples, before and after a layer."""
    scores: int
    """Bytes of what the whole model decides: masks, and gradients where they are needed."""
    gradients: int
    """Bytes of activations while gradients are taken."""
    seconds: float

    @property
    def peak(self) -> int:
        """Most bytes held at once: gradients are taken before any layer is pruned."""
        return self.model + self.scores + max(self.gradients, self.layer + self.buffers)

    def __str__(self) -> str:
        parts = [f"model {readable(self.model)}"]
        for name in ("scores", "gradients", "layer", "buffers"):
            if size := getattr(self, name):
                parts.append(f"{name} {readable(size)}")
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds > 90 else f"{self.seconds:.0f} s"
        return f"about {minutes}, peak memory about {readable(self.peak)} ({', '.join(parts)})"


def forecast(
    model: Any, samples: Sequence[Sample], recipe: Recipe, batch_size: int = 4, speed: float = 0.0
) -> Forecast:
    """Count what pruning will take. The model is not run.

    Time is the number of multiplications over the machine's speed: right to a factor of two.

    Args:
        model: The model.
        samples: Calibration samples.
        recipe: How it will be pruned.
        batch_size: Samples per pass.
        speed: Multiplications and additions per second; 0 measures it on one product.
    """
    view = ModelView.of(model)
    tokens = sum(len(sample.input_ids) for sample in samples)
    longest = max(len(sample.input_ids) for sample in samples)
    linears = view.layer_linears()
    weights = sum(linear.weight.numel() for linear in linears.values())
    shapes = [linear.weight.shape for linear in linears_of(view.layers[0], view).values()]
    in_layer = sum(rows * columns for rows, columns in shapes)
    size = view.embedding.weight.element_size()
    needs = survey_needs(recipe)
    fields = [name for name in PASSES if name in needs]
    if recipe.weigh_tokens or "lrp_input_square" in needs:
        fields = sorted({*fields, "lrp_square"})
    rounds = recipe.steps * (-(-len(view.layers) // recipe.rescore) if recipe.rescore else 1)
    flops = rounds * len(fields) * 8.0 * tokens * weights  # forward, backward, outer products
    if "input_square" in needs:
        flops += rounds * 2.0 * tokens * weights
    layer = in_layer * (size + 1 + 4)
    buffers = 0
    if recipe.sees_inputs:
        passes = 1 + (recipe.order == "sequential")
        flops += recipe.steps * passes * 2.0 * tokens * weights
        buffers = 2 * tokens * view.d_model * size
        layer += batch_size * longest * (view.d_mlp * 3 + view.d_model * 8) * size
    if recipe.updates:
        widths = {columns for _, columns in shapes} if not recipe.weigh_tokens else shapes
        squares = [(w if isinstance(w, int) else w[1]) ** 2 for w in widths]
        grams = sum(squares) + view.d_model**2  # the attention output's input is another
        layer += 4 * grams
        layer += 4 * (5 * max(squares) + 4 * max(rows * columns for rows, columns in shapes))
        each = recipe.iterations + 3 if recipe.update == "admm" else 3
        solve = sum(2.0 * each * r * c**2 + 2.0 * c**3 for r, c in shapes)
        gram_flops = 2.0 * tokens * grams
        flops += recipe.steps * len(view.layers) * (solve + gram_flops)
    whole = parse_scope(recipe.scope).kind == "global" or recipe.budget
    scores = weights + 4 * weights * len(fields) + (weights if whole else 0)
    flops += recipe.tune * 8.0 * tokens * (weights + view.embedding.weight.numel())
    gradients = 0
    if fields or recipe.tune:
        fitter = RelevanceFitter(model, "next-tokens", "lrp", (), ("*",), "square")
        rows = min(batch_size, len(samples)) if fields else 1
        gradients = activation_bytes(fitter, rows * longest)
    return Forecast(
        model=sum(p.numel() * p.element_size() for p in model.parameters()),
        layer=layer,
        buffers=buffers,
        scores=scores,
        gradients=gradients,
        seconds=flops / (speed or _speed(view.embedding.weight)),
    )


def _speed(like: torch.Tensor) -> float:
    """Time one matrix product on the model's device and in its precision, after one to warm up."""
    side = 768
    square = torch.ones(side, side, dtype=like.dtype, device=like.device)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        product = square @ square
        float(product[0, 0])  # waits for the device
        best = max(best, 2.0 * side**3 / (time.perf_counter() - started))
    return best
