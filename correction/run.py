"""The correction of a model: rank components, choose a dose, and prove what it does."""

import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from ..core.errors import ExciseError
from ..core.identity import identity_of, tokenizer_hash
from ..core.loading import Loaded, as_loaded, torch_dtype
from ..edits.edit import Edit
from .config import WEIGHTS, CorrectionConfig
from .controls import random_edits
from .data.behaviour import BehaviourSet, check_sets
from .dose import Factor, choose_dose
from .durability import FORMS
from .proof import prove, rules_of
from .ranking.contrast import Contrast, contrast
from .ranking.learned import SETTINGS, learned_edit
from .ranking.weights import WeightContrast, weight_contrast
from .result import Correction
from .resume import Progress
from .setup import CorrectionSetup, checkpoint_of, forecast_text, set_up


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tell = Callable[[str], None]
Ranking = Contrast | WeightContrast


@overload
def correct_model(
    model: "PreTrainedModel | Loaded | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    config: CorrectionConfig | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    dry_run: Literal[False] = False,
    progress: bool = False,
    tell: Tell | None = None,
    **options: Any,
) -> Correction: ...


@overload
def correct_model(
    model: "PreTrainedModel | Loaded | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    config: CorrectionConfig | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    dry_run: Literal[True],
    progress: bool = False,
    tell: Tell | None = None,
    **options: Any,
) -> str: ...


def correct_model(
    model: "PreTrainedModel | Loaded | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    config: CorrectionConfig | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: bool = False,
    tell: Tell | None = None,
    **options: Any,
) -> Correction | str:
    """Find what carries a behaviour, scale it within a budget, and test that on unseen data.

    Args:
        model: A model of transformers, a hub id or a folder. It is left as it was.
        tokenizer: The model's own; needed beside a model of transformers.
        config: All options in one object, in place of `options`.
        resume: A folder in which finds are kept, so that an interrupted run goes on from there;
            saving the result removes it.
        dry_run: Whether to return the forecast (what would be measured, memory and time), and do
            nothing else.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given a line per step.
        options: The fields of `CorrectionConfig`: `behaviour="repetition"`, or
            `undesired=["..."], general="text.txt"`; `prompts`, `judges`, `sizes`, `budgets`,
            `seed`, and others.

    Returns:
        The edit with its report card, or the doses where none helps within the budget.

    Raises:
        ExciseError: An option that cannot be meant, a file that cannot be read, too few examples,
            or a model that does not show the behaviour.
    """
    if config is not None and options:
        raise ExciseError(f"give `config` or options, not both: {', '.join(options)}")
    config = config or CorrectionConfig(**options)
    live = not isinstance(model, str | os.PathLike | Loaded)
    loaded = as_loaded(model, tokenizer)
    setup = set_up(loaded, config)
    forecast = forecast_text(setup, config)
    if dry_run:
        return forecast
    tell = tell or _silent
    for line in forecast.splitlines():
        tell(line)
    folder = checkpoint_of(loaded, compare=live)
    kept = Progress(None if resume is None else Path(resume))
    correction = _corrected(setup, config, kept, tell, progress)
    if correction.card is None or folder is None:
        return correction
    return correction.bound(folder)


def _silent(_text: str) -> None:
    pass


def _corrected(
    setup: CorrectionSetup, config: CorrectionConfig, kept: Progress, tell: Tell, progress: bool
) -> Correction:
    """Find, choose and prove."""
    loaded, data = setup.loaded, setup.data
    attributed = _attributed(loaded.model, config.attribution_dtype)
    written = {
        "completions": config.n_completions,
        "new_tokens": config.n_new_tokens,
        "judges": [scorer.identity or scorer.name for scorer in config.scorers],
        "seed": config.seed,
    }
    model = identity_of(loaded.model)
    judged = {"behaviour": data.target.name, "tokenizer": tokenizer_hash(loaded.tokenizer)}
    known = all(scorer.identity for scorer in config.scorers)  # else it may judge otherwise today
    behaviour = (kept if known else Progress(None)).behaviour(
        {**model, **judged, **written, "data": data.inputs}, data.behaviour
    )
    warnings = check_sets(behaviour)
    for warning in warnings:
        tell(f"warning: {warning}")
    depends = {
        **model,
        "data": behaviour.fingerprint,
        "attribution dtype": str(attributed.dtype),
        **{name: getattr(config, name) for name in ("method", "component", "seed")},
    }
    ranking = _ranking(attributed, config, behaviour, kept, depends, progress)
    tell(
        f"ranked {ranking.n:,} {ranking.component} by {config.method} on "
        f"{len(behaviour.undesired)} undesired and {len(behaviour.general)} general examples"
    )

    @cache
    def made(size: int, factor: Factor) -> Edit:
        if factor != "learned":
            return ranking.edit(size, factor)
        assert isinstance(ranking, Contrast)
        learn = partial(learned_edit, attributed, behaviour, ranking, size)
        return kept.edit(
            f"learned-{size}", {**depends, **SETTINGS},
            partial(learn, seed=config.seed, progress=progress),
        )  # fmt: skip

    dose = choose_dose(
        loaded,
        made,
        data.target,
        data.parts.selection,
        setup.select_text,
        budget=config.budgets["perplexity"],
        sizes=_provable(loaded, ranking, config, tell),
        factors=config.factors,
        cache=config.cache_folder,
        progress=progress,
        tell=tell,
    )
    if dose.chosen is None:
        return Correction(dose, None, progress=kept.folder)
    edit = made(dose.chosen.size, dose.chosen.factor)
    tell(f"chosen: {edit}")
    rules = config.rules or rules_of(
        data.target, config.budgets, config.least, config.min_samples,
        min(16, config.min_samples), config.rare,
    )  # fmt: skip
    counts = {name: len(part) for name, part in vars(data.parts).items()}
    card = prove(
        loaded, edit, data.target, data.parts.test, setup.test_text, setup.others, rules, dose,
        seen=data.seen,
        controls=config.controls,
        protected=ranking.never_cut,
        forms=tuple(FORMS) if config.durability else (),
        benign=behaviour.reference if config.durability else (),
        facts={"examples": counts, "warnings": warnings, "contrast": ranking.config},
        seed=config.seed,
        cache=config.cache_folder,
        progress=progress,
        tell=tell,
    )  # fmt: skip
    recipe = {
        "contrast": ranking.config,
        "written": written,
        "learned": SETTINGS if dose.chosen.factor == "learned" else None,
        "examples": counts,
        "size": dose.chosen.size,
        "factor": dose.chosen.factor,
        "budgets": dict(config.budgets),
        "controls": config.controls,
        "seed": config.seed,
    }
    return Correction(dose, card, recipe, kept.folder)


def _provable(loaded: Loaded, ranking: Ranking, config: CorrectionConfig, tell: Tell) -> list[int]:
    """Return the sizes that the model has, and that leave components for random edits."""
    sizes = []
    for size in config.n_components:
        try:
            edit = ranking.edit(size)
            if config.controls:
                random_edits(edit, loaded.model, 1, 0, ranking.never_cut)
        except ExciseError as error:
            tell(f"size {size} is left out: {error}")
            continue
        sizes.append(size)
    if not sizes:
        tried = ",".join(map(str, config.n_components))
        raise ExciseError(f"no size of {tried} can be cut: give smaller `sizes`")
    return sizes


def _attributed(model: Any, dtype: str | None) -> Any:
    """Return the model, or a copy of it in another precision.

    Raises:
        ExciseError: It is spread over devices, as accelerate's hooks cannot be copied.
    """
    if dtype is None or torch_dtype(dtype) == model.dtype:
        return model
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ExciseError("`attribution_dtype` copies a model on one device: leave it out")
    return deepcopy(model).to(torch_dtype(dtype))


def _ranking(
    model: Any, config: CorrectionConfig, behaviour: BehaviourSet, kept: Progress,
    depends: dict[str, Any], progress: bool,
) -> Ranking:  # fmt: skip
    shared: dict[str, Any] = {"random_seed": config.seed, "progress": progress}
    if config.component == WEIGHTS:
        keep = max(config.n_components)  # all of them would be as large as the model
        rank = partial(weight_contrast, model, behaviour, method=config.method, keep=keep)
        return kept.weights({**depends, "keep": keep}, partial(rank, **shared))
    component: Any = config.component
    return kept.contrast(
        depends, partial(contrast, model, behaviour, config.method, component, **shared)
    )
