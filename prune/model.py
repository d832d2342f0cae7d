"""Prune a model's weights, from a name or a loaded model to a result that can be saved."""

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExciseError, unknown_name
from ..core.export import note, record
from ..core.loading import Loaded, as_loaded
from ..core.memory import Forecast, on_disk, peak, readable, unpageable, watched
from ..lrp.relevance import Relevance
from .calibration import Calibration, Texts
from .forecast import forecast_pruning
from .mask import RANKS, Component, Rank, check_effect, check_sparsity, select
from .pruned import PrunedModel, PruningForecast
from .recipe import Recipe, recipe_with
from .run import prune_weights


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def prune_model(
    model: "Loaded | PreTrainedModel | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    sparsity: float | None = None,
    *,
    recipe: str | Recipe = "best",
    calibration: Texts = "builtin",
    samples: int = 32,
    length: int = 512,
    relevance: Relevance | str | os.PathLike[str] | None = None,
    rank: Rank = "abs",
    other_model: bool = False,
    batch_size: int = 4,
    device: Any = None,
    seed: int = 0,
    resume: str | Path | None = None,
    dry_run: bool = False,
    progress: bool = False,
    **changes: Any,
) -> Any:
    """Set weights of a model to zero, by a recipe or by a relevance. The model is pruned in place.

    A model that is handed over loaded is changed, and is `result.model`: copy it before where the
    dense one is needed. After an error or an interruption it may be pruned in part.

    Args:
        model: A model of transformers, a `Loaded`, a hub id or a folder.
        tokenizer: Of a model of transformers.
        sparsity: Share of the weights that goes, as in 0.5; N:M scopes have their own.
        recipe: A name of `RECIPES`, or a recipe.
        calibration: A text file, a datasets id, `builtin`, `self` (the model writes), or texts.
        samples: Of the calibration.
        length: Tokens per sample.
        relevance: Scores of weights, which choose in place of a recipe; nothing is calibrated.
        rank: Of the relevance: `abs` or `signed`.
        other_model: Whether a relevance of other weights is used all the same.
        batch_size: Samples per pass.
        device: Where layers are computed, one at a time; None leaves them where they are.
        seed: Of the calibration and of the criterion `random`.
        resume: Folder for progress, from which an interrupted run goes on; gone when the result is
            saved.
        dry_run: Whether to return a forecast instead, and leave the model as it is.
        progress: Whether to draw progress bars on a terminal.
        changes: Fields of the recipe to change, as in `scope="2:4"`.

    Returns:
        The pruned model with its mask and provenance; or with `dry_run` a `PruningForecast`.

    Raises:
        ExciseError: As `Recipe`, `Calibration`, `as_loaded` and `prune_weights`.
    """
    if relevance is not None:
        if changes or recipe != "best":
            raise ExciseError("a relevance chooses by itself: leave `recipe` and its fields out")
        return zero_by(model, tokenizer, sparsity, relevance, "weights", rank, other_model, dry_run)
    chosen = recipe_with(recipe, sparsity, **changes)
    if sparsity is None and not chosen.fixed and not isinstance(recipe, Recipe):
        raise ExciseError("say how much goes: `sparsity` 0.5, or `scope` 2:4")
    source = Calibration(calibration, samples, length, seed)
    loaded = as_loaded(model, tokenizer)
    drawn = source.samples(loaded, placeholders=dry_run, progress=progress)
    expected = forecast_pruning(loaded.model, drawn, chosen, batch_size)
    name = "recipe" if isinstance(recipe, Recipe) else recipe
    log.info("%s: %s\n%s: %s", name, chosen, source, expected)
    if dry_run:
        told = {"recipe": chosen.to_json()}
        return PruningForecast(
            expected.peak, expected.seconds, expected.counts, expected.parts, told,
            f"{chosen}: {expected}",
        )  # fmt: skip
    mapped = on_disk(loaded.model)
    if mapped and expected.parts["gradients"]:
        log.warning("gradients read all weights from disk for every batch")
    started = time.perf_counter()
    with watched(count=unpageable) as held:
        pruned = prune_weights(
            loaded.model, drawn, chosen, batch_size=batch_size, device=device, resume=resume,
            seed=seed, progress=progress,
        )  # fmt: skip
    seconds, most = time.perf_counter() - started, held.most if mapped else peak()
    log.info("took %.1f s, peak memory %s", seconds, readable(most))
    result = {"sparsity": pruned.sparsity, "asked": chosen.goal, "recipe": chosen.to_json()}
    extra = {"calibration": str(source), "divergences": list(pruned.divergences)}
    made = record(loaded, {"verb": "prune", **result, **extra}, {"mask": pruned.mask})
    note(loaded, made)
    return PrunedModel(
        loaded, pruned.mask, chosen, made, result, expected, seconds, most, f" by {chosen}",
        None if resume is None else Path(resume),
    )  # fmt: skip


def zero_by(
    model: Any,
    tokenizer: Any,
    sparsity: float | None,
    relevance: Relevance | str | os.PathLike[str],
    component: Component,
    rank: Rank,
    other_model: bool,
    dry_run: bool,
) -> PrunedModel | Forecast:
    """Set the components that a relevance ranks lowest to zero; see `prune_model`."""
    if sparsity is None:
        raise ExciseError("say how much goes: `sparsity` 0.2")
    check_sparsity(sparsity)
    if rank not in RANKS:
        raise unknown_name("rank", rank, RANKS)
    if not isinstance(relevance, Relevance):
        relevance = Relevance.from_pretrained(os.fspath(relevance))
    mask = select(relevance, component, sparsity, rank)
    check_effect(mask, sparsity)
    result = {"components": component, "asked": sparsity, "sparsity": mask.sparsity}
    loaded = as_loaded(model, tokenizer)
    if not other_model:
        relevance.check_model(loaded.model)
    if dry_run:
        return PruningForecast(peak(), result=result, words=str(mask))
    started = time.perf_counter()
    mask.apply_(loaded.model)
    more = {"rank": rank, "relevance": relevance.config, "zero": True}
    made = record(loaded, {"verb": "prune", **result, **more}, {"mask": mask})
    note(loaded, made)
    seconds = time.perf_counter() - started
    return PrunedModel(loaded, mask, None, made, result, Forecast(peak()), seconds, peak())
