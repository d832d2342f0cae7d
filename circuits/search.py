"""What a search is given: prompts in three parts, and how to look; and what it will need."""

from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import ExciseError, unknown_name
from ..core.families import ModelView
from ..core.memory import Forecast, held_with
from .ablation import ABLATIONS, Ablation
from .circuit import RESAMPLES
from .graph import Graph
from .levels import RANKS, Shape, get_level
from .methods import get_method
from .pairs import Pairs
from .weights import check_weight_method


@dataclass(frozen=True)
class Parts:
    """Prompts by what they are for; they should share no names, places or templates."""

    train: Pairs
    """Scores are taken here."""
    validation: Pairs
    """The size is chosen here."""
    test: Pairs
    """Everything that is reported is measured here."""


@dataclass(frozen=True)
class Search:
    """How a circuit is looked for."""

    level: str = "nodes"
    method: str = "relp-ig"
    rank: str = "signed"
    ablation: Ablation = "resample"
    faithfulness: float = 0.9
    size: int | None = None
    """A fixed number of components instead of a faithfulness."""
    refined: bool = False
    """Whether the circuit is made smaller by greedy refinement."""
    minimality: bool = False
    """Whether each component of the circuit is left out once; takes a run for each."""
    controls: int = 5
    """Random circuits of the same size and profile."""
    seed: int = 0

    def __post_init__(self):
        get_level(self.level)
        method = get_method(self.method)
        if self.rank not in RANKS:
            raise unknown_name("rank", self.rank, RANKS)
        if self.ablation not in ABLATIONS:
            raise unknown_name("ablation", self.ablation, ABLATIONS)
        if self.level == "weights":
            check_weight_method(self.method)
            if self.ablation != "zero" or self.refined:
                raise ExciseError(
                    "weights are set to zero, and not refined: leave --refine out, and say "
                    "--ablation zero"
                )
        if self.controls < 0:
            raise ExciseError(f"controls is {self.controls}: give 0 or more")
        if self.size is not None and self.size < 1:
            raise ExciseError(f"size is {self.size}: give at least 1")
        if method.exact and self.level == "neurons":
            raise ExciseError("exact patching runs the model once a neuron: score with 'relp'")


def prompts_in_parts(pairs: Pairs, seed: int = 0) -> Parts:
    """Share out a user's own prompts: half to score on, a quarter each to choose and to test.

    Raises:
        ExciseError: Fewer than 8 prompts.
    """
    if len(pairs) < 8:
        raise ExciseError(f"{len(pairs)} prompts are too few to choose and to test on: give 8")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()

    def part(rows: list[int]) -> Pairs:
        other = pairs.counterfactual
        return Pairs(
            tuple(pairs.clean[row] for row in rows),
            None if other is None else tuple(other[row] for row in rows),
        )

    half, quarter = len(order) // 2, len(order) // 4
    return Parts(part(order[:half]), part(order[half : half + quarter]),
                 part(order[half + quarter :]))  # fmt: skip


def planned(model: Any, parts: Parts, search: Search, batch_size: int) -> Forecast:
    """Return the memory that a search will hold at most, the model included; no time is known.

    Counted are the activations of one batch with gradients (or, for edges, what every writer
    writes), the replacements of the prompts to choose and to test on, and per-sample scores.

    Args:
        model: The model.
        parts: The prompts.
        search: How it is looked for.
        batch_size: Prompts per pass.
    """
    view = ModelView.of(model)
    size = view.embedding.weight.element_size()
    graph, layers = Graph.of(view), len(view.layers)
    longest = max(pairs.longest for pairs in vars(parts).values())
    tokens = batch_size * longest
    written = view.n_heads * view.head_dim + view.d_mlp + view.d_model  # z, hidden, MLP
    layer = 4 * view.n_heads * view.head_dim + 4 * view.d_mlp + 6 * view.d_model
    method = get_method(search.method)
    rows = 2 if method.multipliers else 1  # prompts and counterfactuals at once
    activations = rows * tokens * layers * (layer + 2 * written) * size
    if rows == 2:  # attention patterns and their gradients are made anew
        activations += 6 * rows * tokens * view.n_heads * longest * size
    if search.level != "weights":  # of nodes, edges are drawn
        streams = len(graph.writers) * tokens * view.d_model * size
        activations += (3 if search.refined else 2) * streams
    # the prompts to choose and to test on, and half of the latter under two ablations
    replaced = sum(
        len(pairs) * pairs.longest for pairs in (parts.validation, parts.test, parts.test)
    )
    replacements = 2 * replaced * layers * written * size
    n = get_level(search.level).count(Shape.of(view))
    if search.level == "weights":
        scores = n * (3 * 4 + size + 16)  # scores, sorted, of rows; weights put by; choices
    else:
        scores = (2 * len(parts.train) + 2 * RESAMPLES) * n * 4
    vocabulary = model.config.vocab_size * 4 * (2 * batch_size + len(parts.test))
    counts = {
        f"prompts to {use}": len(pairs)
        for use, pairs in zip(("score", "choose", "test"), vars(parts).values(), strict=True)
    }
    if method.exact:
        counts["passes of exact patching"] = (n + 1) * -(-len(parts.train) // batch_size)
    peak = held_with(model) + activations + replacements + scores + vocabulary
    return Forecast(peak, counts=counts)
