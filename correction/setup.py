"""A model with all that a correction measures on it, and what that will cost."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..core.errors import ExciseError
from ..core.generation import Decoding
from ..core.loading import Loaded, model_folder, torch_dtype
from ..edits.checkpoint import Checkpoint
from ..eval.choice import TaskAccuracy
from ..eval.outcome import Metric
from ..eval.perplexity import Perplexity
from ..eval.repetition import Repetition
from ..tasks.registry import TASKS, task_prompts
from .config import WEIGHTS, CorrectionConfig
from .data.likelihood import identity_likelihood
from .data.material import (
    CorrectionData,
    GenerationSettings,
    divided,
    from_examples,
    from_prompts,
)
from .data.recipes import prompt_parts, repetition_parts, repetition_target, toxicity_target
from .data.target import Target
from .plan import attribution_bytes, described, plan_of
from .ranking.learned import STEPS


@dataclass(frozen=True)
class CorrectionSetup:
    """A model with all that is measured on it."""

    loaded: Loaded
    data: CorrectionData
    select_text: Perplexity
    test_text: Perplexity
    others: tuple[Metric, ...]


def set_up(loaded: Loaded, config: CorrectionConfig) -> CorrectionSetup:
    """Divide examples and text for a model, and say what is measured.

    Raises:
        ExciseError: A quantised model, whose weights cannot be scaled, or too few examples.
    """
    if getattr(loaded.model, "is_quantized", False):
        raise ExciseError(f"{loaded.name} is quantised: correct it before, in plain weights")
    texts = divided(config.documents, config.general_texts)
    decoding = Decoding(0, config.n_new_tokens)

    def judged(name: str) -> Target:
        return replace(toxicity_target(config.scorers, decoding), name=name)

    scorer = config.scorers[0] if config.scorers else None
    written = GenerationSettings(scorer, config.n_new_tokens, config.n_completions, config.seed)
    if config.undesired is not None:
        data = from_examples(
            loaded, config.undesired, config.general, texts,
            judged if scorer else None, config.prompt_texts, config.examples,
            written if config.n_completions else None,
        )  # fmt: skip
    elif config.behaviour == "repetition":
        target = repetition_target(config.n_new_tokens)
        data = from_prompts(loaded, target, repetition_parts(), written, texts)
    else:
        parts = prompt_parts(config.prompt_texts or [], attribute=True)
        data = from_prompts(loaded, judged("toxicity"), parts, written, texts)
    window, n = config.window, config.windows
    shared: dict[str, Any] = {"protocol": "window", "window": window, "source": config.text_name}
    select = Perplexity(texts.selection, limit=-(-n // 2), spread=True, **shared)
    test = Perplexity(data.texts.test, limit=n, spread=True, **shared)
    others: list[Metric] = []
    if "repetition" in config.side_effects and data.target.judge.outcome != "repetition":
        others.append(Repetition(batch_size=64))
    if "identity" in config.side_effects:
        others.append(identity_likelihood(loaded.tokenizer))
    parts = data.parts
    selected, tested = parts.selection[: config.most_selection], parts.test[: config.most_test]
    data = replace(data, parts=replace(parts, selection=selected, test=tested))
    others += _tasks(loaded, config)
    return CorrectionSetup(loaded, data, select, test, tuple(others))


def _tasks(loaded: Loaded, config: CorrectionConfig) -> list[TaskAccuracy]:
    """Return the tasks that were named, or all whose words the tokenizer has."""
    found = []
    for name in config.tasks or TASKS:
        try:
            made = task_prompts(
                name, loaded.tokenizer, config.task_samples, config.seed, config.split
            )
            metric = TaskAccuracy(name, lambda _tokenizer, made=made: made, split=config.split)
            metric.plan(loaded)
        except ExciseError:
            if config.tasks:
                raise
            continue
        found.append(metric)
    return found


def forecast_text(setup: CorrectionSetup, config: CorrectionConfig) -> str:
    """Say what is about to be done, how long it may take and in how much memory."""
    data, n = setup.data, config.windows
    plan = plan_of(
        data,
        new_tokens=config.n_new_tokens if config.scorers or config.behaviour else 0,
        windows=(-(-n // 2), n),
        window=config.window,
        doses=len(config.n_components) * len(config.factors),
        controls=config.controls,
        completions=config.n_completions,
        steps=STEPS * len(config.n_components) * ("learned" in config.factors),
        others=16 * config.task_samples * (len(setup.others) - 1) + 2400,
    )
    metrics = [data.target.metric(data.parts.test), setup.test_text, *setup.others]
    model, dtype = setup.loaded.model, config.attribution_dtype
    attribution = attribution_bytes(
        model, max(2 * config.n_new_tokens, 128 if config.undesired is not None else 0),
        config.component == WEIGHTS,
        torch_dtype(dtype) if dtype else model.dtype,
    )  # fmt: skip
    return described(setup.loaded, plan, metrics, data, attribution)


def checkpoint_of(loaded: Loaded, compare: bool) -> Path | None:
    """Return the folder of a model's checkpoint, to which an edit is bound.

    Args:
        loaded: The model.
        compare: Whether to check that the model's weights are those of the folder, as for a model
            that was given live; another one has no folder.
    """
    try:
        folder = model_folder(loaded.name, getattr(loaded.model.config, "_commit_hash", None))
        if not compare:
            return folder
        checkpoint = Checkpoint.of(folder)
        live = loaded.model.state_dict()
        for name in checkpoint.tensors:
            if (own := live.get(checkpoint.prefix + name)) is not None:
                stored = checkpoint.read(name).to(own.dtype)
                if not torch.equal(stored, own.detach().cpu().flatten()):
                    return None
    except ExciseError:
        return None
    return folder
