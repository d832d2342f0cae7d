"""What a search is given: prompts in three parts, and how to look."""

from dataclasses import dataclass

import torch

from ..core.errors import ExciseError, unknown_name
from .ablation import ABLATIONS, Ablation
from .levels import RANKS, get_level
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
