"""The steps of excise correct, from options to the folder that is written."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError
from ..core.files.json_text import json_text
from ..core.generation import Decoding
from ..core.identity import identity_of, tokenizer_hash
from ..core.loading import Loaded, model_folder, torch_dtype
from ..correction.card import card_json, card_markdown
from ..correction.card_page import card_page
from ..correction.controls import random_edits
from ..correction.data.behaviour import BehaviourSet, check_sets
from ..correction.data.likelihood import identity_likelihood
from ..correction.data.material import Material, Written, divided, from_examples, from_prompts
from ..correction.data.recipes import (
    prompt_parts,
    repetition_parts,
    repetition_target,
    toxicity_target,
)
from ..correction.data.target import Target
from ..correction.dose import DoseResponse, Factor, choose_dose
from ..correction.durability import FORMS
from ..correction.plan import attribution_bytes, described, plan_of
from ..correction.proof import Card, prove, rules_of
from ..correction.ranking.contrast import Contrast, contrast
from ..correction.ranking.learned import SETTINGS, STEPS, learned_edit
from ..correction.ranking.weights import WeightContrast, weight_contrast
from ..correction.resume import Progress
from ..edits.apply import bind
from ..edits.edit import Edit
from ..eval.choice import TaskAccuracy
from ..eval.gate import junit
from ..eval.outcome import Metric
from ..eval.perplexity import Perplexity
from ..eval.repetition import Repetition
from ..tasks.registry import TASKS, task_prompts
from .correct_options import WEIGHTS, Asked


Tell = Callable[[str], None]
Ranking = Contrast | WeightContrast


@dataclass(frozen=True)
class Work:
    """A model with all that is measured on it."""

    loaded: Loaded
    material: Material
    select_text: Perplexity
    test_text: Perplexity
    others: tuple[Metric, ...]


def prepared(loaded: Loaded, asked: Asked) -> Work:
    """Divide examples and text for a model, and say what is measured.

    Raises:
        ExciseError: A quantised model, whose weights cannot be scaled, or too few examples.
    """
    if getattr(loaded.model, "is_quantized", False):
        raise ExciseError(f"{loaded.name} is quantised: correct it before, in plain weights")
    texts = divided(asked.documents, asked.general)
    decoding = Decoding(0, asked.new_tokens)

    def judged(name: str) -> Target:
        return replace(toxicity_target(asked.scorers, decoding), name=name)

    scorer = asked.scorers[0] if asked.scorers else None
    written = Written(scorer, asked.new_tokens, asked.completions, asked["seed"])
    if asked["undesired"]:
        material = from_examples(
            loaded, asked["undesired"], asked["general"], texts,
            judged if scorer else None, asked.prompts, asked["examples"],
            written if asked.completions else None,
        )  # fmt: skip
    elif asked["behaviour"] == "repetition":
        target = repetition_target(asked.new_tokens)
        material = from_prompts(loaded, target, repetition_parts(), written, texts)
    else:
        parts = prompt_parts(asked.prompts or [], attribute=True)
        material = from_prompts(loaded, judged("toxicity"), parts, written, texts)
    window, n = asked["window"], asked["windows"]
    source = str(asked["perplexity"])
    shared: dict[str, Any] = {"protocol": "window", "window": window, "source": source}
    select = Perplexity(texts.selection, limit=-(-n // 2), spread=True, **shared)
    test = Perplexity(material.texts.test, limit=n, spread=True, **shared)
    others = [identity_likelihood(loaded.tokenizer), *_tasks(loaded, asked)]
    if material.target.judge.outcome != "repetition":
        others.insert(0, Repetition(batch_size=64))
    return Work(loaded, material, select, test, tuple(others))


def _tasks(loaded: Loaded, asked: Asked) -> list[TaskAccuracy]:
    """Return the tasks that were named, or all whose words the tokenizer has."""
    found = []
    n, seed, split = asked["task_samples"], asked["seed"], asked["split"]
    for name in asked["tasks"] or TASKS:
        try:
            made = task_prompts(name, loaded.tokenizer, n, seed, split)
            metric = TaskAccuracy(name, lambda _tokenizer, made=made: made, split=split)
            metric.plan(loaded)
        except ExciseError:
            if asked["tasks"]:
                raise
            continue
        found.append(metric)
    return found


def plan_text(work: Work, asked: Asked) -> str:
    """Say what is about to be done, how long it may take and in how much memory."""
    material = work.material
    written = asked.new_tokens if asked.scorers or asked["behaviour"] else 0
    n = asked["windows"]
    plan = plan_of(
        material,
        new_tokens=written,
        windows=(-(-n // 2), n),
        window=asked["window"],
        doses=len(asked.sizes) * len(asked.factors),
        controls=asked["controls"],
        completions=asked.completions,
        steps=STEPS * len(asked.sizes) * ("learned" in asked.factors),
        others=16 * asked["task_samples"] * (len(work.others) - 1) + 2400,
    )
    metrics = [material.target.metric(material.parts.test), work.test_text, *work.others]
    model, dtype = work.loaded.model, asked["attribution_dtype"]
    attribution = attribution_bytes(
        model, max(2 * asked.new_tokens, 128 if asked["undesired"] else 0),
        asked["component"] == WEIGHTS,
        torch_dtype(dtype) if dtype else model.dtype,
    )  # fmt: skip
    return described(work.loaded, plan, metrics, material, attribution)


def corrected(
    work: Work, asked: Asked, progress: Progress, tell: Tell
) -> tuple[Card, dict[str, Any]] | DoseResponse:
    """Find, choose and prove.

    Returns:
        The card and the recipe; or only the doses, where none will do.
    """
    loaded, material = work.loaded, work.material
    attributed = _attributed(loaded.model, asked["attribution_dtype"])
    written = {
        "completions": asked.completions,
        "new_tokens": asked.new_tokens,
        "judges": [scorer.identity or scorer.name for scorer in asked.scorers],
        "seed": asked["seed"],
    }
    model = identity_of(loaded.model)
    judged = {"behaviour": material.target.name, "tokenizer": tokenizer_hash(loaded.tokenizer)}
    known = all(scorer.identity for scorer in asked.scorers)  # else it may judge otherwise today
    behaviour = (progress if known else Progress(None)).behaviour(
        {**model, **judged, **written, "data": material.inputs}, material.behaviour
    )
    warnings = check_sets(behaviour)
    for warning in warnings:
        tell(f"warning: {warning}")
    depends = {
        **model,
        "data": behaviour.fingerprint,
        "attribution dtype": str(attributed.dtype),
        **{name: asked[name] for name in ("method", "component", "seed")},
    }
    ranking = _ranking(attributed, asked, behaviour, progress, depends)
    tell(
        f"ranked {ranking.n:,} {ranking.component} by {asked['method']} on "
        f"{len(behaviour.undesired)} undesired and {len(behaviour.general)} general examples"
    )

    @cache
    def made(size: int, factor: Factor) -> Edit:
        if factor != "learned":
            return ranking.edit(size, factor)
        assert isinstance(ranking, Contrast)
        learn = partial(learned_edit, attributed, behaviour, ranking, size)
        return progress.edit(
            f"learned-{size}", {**depends, **SETTINGS},
            partial(learn, seed=asked["seed"], progress=True),
        )  # fmt: skip

    dose = choose_dose(
        loaded,
        made,
        material.target,
        material.parts.selection,
        work.select_text,
        budget=asked.budgets["perplexity"],
        sizes=_provable(loaded, ranking, asked, tell),
        factors=asked.factors,
        cache=asked.cache,
        progress=True,
        tell=tell,
    )
    if dose.chosen is None:
        return dose
    edit = made(dose.chosen.size, dose.chosen.factor)
    tell(f"chosen: {edit}")
    rules = asked.policy or rules_of(
        material.target, asked.budgets, asked.least, asked["min_samples"],
        min(16, asked["min_samples"]), asked.rare,
    )  # fmt: skip
    parts = material.parts
    counts = {name: len(part) for name, part in vars(parts).items()}
    card = prove(
        loaded, edit, material.target, parts.test, work.test_text, work.others, rules, dose,
        seen=material.seen,
        controls=asked["controls"],
        protected=ranking.never_cut,
        forms=tuple(FORMS) if asked["durability"] else (),
        benign=behaviour.reference if asked["durability"] else (),
        facts={"examples": counts, "warnings": warnings, "contrast": ranking.config},
        seed=asked["seed"],
        cache=asked.cache,
        progress=True,
        tell=tell,
    )  # fmt: skip
    recipe = {
        "contrast": ranking.config,
        "written": written,
        "learned": SETTINGS if dose.chosen.factor == "learned" else None,
        "examples": counts,
        "size": dose.chosen.size,
        "factor": dose.chosen.factor,
        "budgets": asked.budgets,
        "controls": asked["controls"],
        "seed": asked["seed"],
    }
    return card, recipe


def _provable(loaded: Loaded, ranking: Ranking, asked: Asked, tell: Tell) -> list[int]:
    """Return the sizes that the model has, and that leave components for random edits."""
    sizes = []
    for size in asked.sizes:
        try:
            edit = ranking.edit(size)
            if asked["controls"]:
                random_edits(edit, loaded.model, 1, 0, ranking.never_cut)
        except ExciseError as error:
            tell(f"size {size} is left out: {error}")
            continue
        sizes.append(size)
    if not sizes:
        raise ExciseError(f"no size of {asked['sizes']} can be cut: give smaller ones")
    return sizes


def _attributed(model: Any, dtype: str | None) -> Any:
    """Return the model, or a copy of it in another precision.

    Raises:
        ExciseError: It is spread over devices, as accelerate's hooks cannot be copied.
    """
    if dtype is None or torch_dtype(dtype) == model.dtype:
        return model
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise ExciseError("--attribution-dtype copies a model on one device: leave it out")
    return deepcopy(model).to(torch_dtype(dtype))


def _ranking(
    model: Any, asked: Asked, behaviour: BehaviourSet, progress: Progress, depends: dict[str, Any]
) -> Ranking:
    method, seed = asked["method"], asked["seed"]
    if asked["component"] == WEIGHTS:
        keep = max(asked.sizes)  # all of them would be as large as the model
        rank = partial(weight_contrast, model, behaviour, method=method, keep=keep)
        return progress.weights(
            {**depends, "keep": keep}, partial(rank, random_seed=seed, progress=True)
        )
    return progress.contrast(
        depends,
        lambda: contrast(
            model, behaviour, method, asked["component"], random_seed=seed, progress=True
        ),
    )


def bound(card: Card, recipe: dict[str, Any], revision: str | None) -> Card:
    """Tie the card's edit to its checkpoint, with recipe and evidence."""
    name = card.before.model
    folder = model_folder(name, revision)
    edit = bind(card.edit, folder, name, recipe, card.evidence(), card.after.seen)
    return replace(card, edit=edit)


def write_card(card: Card, output: Path, overwrite: bool, show_text: bool) -> None:
    """Write the edit with its report card, all under its seal, whole or not at all."""
    parts = {
        "report.json": json_text(card_json(card), indent=2) + "\n",
        "report.md": card_markdown(card),
        "report.html": card_page(card, show_text),
        "junit.xml": junit(card.report.gates),
    }
    files = {name: text.encode() for name, text in parts.items()}
    replace(card.edit, files={**card.edit.files, **files}).save_pretrained(output, overwrite)
