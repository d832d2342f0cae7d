"""How units are scored: which tensors each formula of `unit_formulas` is given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.data import Batch, Sample
from ...core.families import ModelView, plain_linear
from ...lrp.run import score_samples
from ..activations import input_statistics, run_through, shown
from ..criteria import random
from .compensation import outputs
from .formulas import block_influence, magnitude
from .shrink import StructuredComponent, writers


@dataclass(frozen=True)
class Given:
    """What a criterion is given."""

    view: ModelView
    samples: Sequence[Sample]
    component: StructuredComponent
    batch_size: int
    seed: int
    progress: bool

    @property
    def units(self) -> int:
        """Of a layer; the layer itself is one."""
        return {"neurons": self.view.d_mlp, "heads": self.view.n_heads, "layers": 1}[self.component]

    def batches(self) -> Iterator[Batch]:
        """Iterate over batches behind a progress bar."""
        return shown(self.samples, self.batch_size, "activations", self.progress)


def by_magnitude(given: Given) -> Tensor:
    """Score by rows of what writes a unit and columns of what reads it; no biases.

    Of keys and values that several heads share, each has an equal part of the squares.
    """
    rows = []
    for layer, reader in zip(given.view.layers, outputs(given.view, given.component), strict=True):
        parts = [reader.weight.detach().T.double().reshape(given.units, -1)]
        for linear in writers(layer, given.component):
            weight = plain_linear(linear, given.view).weight.detach().double()
            sharing = reader.in_features // len(weight)
            part = weight.reshape(given.units // sharing, -1) / sharing**0.5
            parts.append(part.repeat_interleave(sharing, 0))
        rows.append(magnitude(*parts).cpu())
    return torch.stack(rows)


def by_inputs(formula: Callable[..., Tensor], *fields: str) -> Callable[[Given], Tensor]:
    """Score by the columns of the output linears, and statistics of what these read."""

    def scores(given: Given) -> Tensor:
        linears, rows = outputs(given.view, given.component), []
        found = input_statistics(given.view, given.batches(), linears)
        for linear, statistics in zip(linears, found, strict=True):
            square = linear.weight.detach().double().square().sum(0)
            values = (square, *(getattr(statistics, field) for field in fields))
            shaped = (v.view(given.units, -1) if isinstance(v, Tensor) else v for v in values)
            rows.append(formula(*shaped).cpu())
        return torch.stack(rows)

    return scores


def by_relevance(method: str) -> Callable[[Given], Tensor]:
    """Score by the second moment of relevance; layers by the sum over their neurons and heads."""

    def scores(given: Given) -> Tensor:
        found = score_samples(
            given.view.model, given.samples, batch_size=given.batch_size, progress=given.progress,
            **relevance_options(method, given.component),
        )  # fmt: skip
        if given.component == "layers":
            return found.get("neurons").double().sum(1) + found.get("heads").double().sum(1)
        return found.get(given.component)

    return scores


def relevance_options(method: str, component: str) -> dict[str, Any]:
    """Return the options of `excise.lrp.run.score_samples` for units of a component."""
    components = ("neurons", "heads") if component == "layers" else (component,)
    return {"target": "next-tokens", "method": method, "aggregate": "square",
            "components": components, "keep_samples": False}  # fmt: skip


def by_influence(given: Given) -> Tensor:
    """Score layers by how far they turn what passes through them."""
    totals = torch.zeros(len(given.view.layers), dtype=torch.float64)

    def see(index: int, read: Tensor, written: Tensor) -> None:
        totals[index] += block_influence(read.double(), written.double()).sum().cpu()

    layers = [layer.module for layer in given.view.layers]
    return totals / run_through(given.view, given.batches(), layers, see)


def by_chance(given: Given) -> Tensor:
    """Score by the seed alone."""
    return random(torch.empty(len(given.view.layers), given.units), given.component, given.seed)
