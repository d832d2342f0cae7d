"""Several recipes on one model and one calibration set, measured in the same way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from ..core.data import Sample
from ..core.memory import watched
from .progress import Progress
from .recipe import Recipe
from .run import prune_weights


Found = TypeVar("Found")


@dataclass(frozen=True)
class Trial(Generic[Found]):
    """One recipe, and what came of it."""

    name: str
    recipe: Recipe
    sparsity: float
    """Counted."""
    found: Found
    """What was measured."""
    seconds: float
    """Of pruning."""
    peak: int
    """Bytes held while pruning, above what was held before (of a resumed run: in its last part)."""


def compare_recipes(
    model: Any,
    samples: Sequence[Sample],
    recipes: Mapping[str, Recipe],
    measure: Callable[[], Found],
    *,
    batch_size: int = 4,
    device: Any = None,
    resume: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Iterator[Trial[Found]]:
    """Prune by each recipe in turn, from the same dense weights.

    Holds a copy of the dense model, which comes back after each one.

    Args:
        model: The dense model.
        samples: Calibration samples, the same for all.
        recipes: By the name they are shown under.
        measure: Called on each pruned model.
        batch_size: Samples per pass.
        device: As in `prune_weights`.
        resume: Folder for progress, one within it for each recipe; removed at the end. A recipe
            that was finished before is loaded from it (tuning is done anew).
        seed: As in `prune_weights`.
        progress: As in `prune_weights`.

    Yields:
        What came of each, as soon as it is there.

    Raises:
        ExciseError: As `prune_weights`.
    """
    kept = None if resume is None else Path(resume)
    for name, recipe in recipes.items():
        store = Progress(None if kept is None else kept / name)
        with unchanged(model):
            with watched() as held:
                pruned = prune_weights(
                    model, samples, recipe, batch_size=batch_size, device=device,
                    resume=store.folder, seed=seed, progress=progress,
                )  # fmt: skip
            costs = store.first_costs({"seconds": pruned.seconds, "peak": held.added})
            found = measure()
        yield Trial(name, recipe, pruned.sparsity, found, costs["seconds"], int(costs["peak"]))
    Progress(kept).remove()


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Give all parameters back at the end of a block, bit by bit."""
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(before[name])
