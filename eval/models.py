"""Measure models, compare them with the first, and decide by a gate: one call for all of it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from ..core.documents import read_documents, read_texts
from ..core.errors import ExciseError
from ..core.generation import Decoding
from ..core.loading import Loaded, LoadOptions, as_loaded, load_model
from ..core.memory import Forecast
from ..core.provenance import NOT_TOLD, Seen, seen_in
from ..core.texts import line_hashes, text_hash
from ..tasks.registry import Split, get_task, task_prompts
from .choice import TaskAccuracy
from .gate import check_gate
from .lm_harness import leaf_tasks
from .outcome import Metric
from .perplexity import Perplexity
from .policy import Rule, parse_policy, read_policy
from .repetition import Repetition
from .report import Report
from .run import default_cache, evaluate, forecast
from .scorers import get_scorer
from .toxicity import Toxicity
from .zero_shot import ZeroShot


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@runtime_checkable
class HoldsModel(Protocol):
    """What a door returns that made a model: the model, its tokenizer, and the texts it was on."""

    @property
    def model(self) -> "PreTrainedModel":
        """The model."""
        ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        ...

    @property
    def seen(self) -> Seen:
        """The texts that found or chose what was done to the model."""
        ...


Model: TypeAlias = "str | os.PathLike[str] | PreTrainedModel | Loaded | HoldsModel"
Texts: TypeAlias = str | os.PathLike[str] | Sequence[str]


def evaluate_models(
    models: "Model | Sequence[Model] | Mapping[str, Model]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    perplexity: Texts | None = None,
    protocol: Literal["window", "stride", "document"] = "window",
    window: int = 1024,
    limit: int | None = None,
    toxicity: Texts | None = None,
    scorers: Sequence[str] = ("profanity",),
    completions: int = 25,
    new_tokens: int = 20,
    temperature: float = 1.0,
    top_p: float = 0.9,
    threshold: float = 0.5,
    max_prompts: int | None = None,
    max_empty: float = 0.2,
    repetition: bool = False,
    tasks: Sequence[str] = (),
    samples: int = 128,
    split: Split = "test",
    zero_shot: Sequence[str] = (),
    zero_shot_folder: Path | None = None,
    zero_shot_limit: int | None = None,
    metrics: Sequence[Metric] = (),
    gate: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    attribution: Iterable[str | os.PathLike[str]] = (),
    batch_size: int | None = None,
    seed: int = 0,
    options: LoadOptions | None = None,
    cache: str | os.PathLike[str] | bool = True,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
    dry_run: bool = False,
) -> Any:
    """Measure one or several models, the first of them the baseline of the others.

    Rows are kept by the content of weights, tokenizer, protocol and data, so that an evaluation
    that was stopped goes on where it was. Models given by name are held one at a time.

    Args:
        models: One model, several, or several by the label that the report shows: each a hub id,
            a folder, a model of transformers, a `Loaded`, or the result of a door that made one.
        tokenizer: Of models that come without one.
        perplexity: Path of a text file, id of a dataset, `builtin`, or a list of documents.
        protocol: `window`, `stride` or `document`; see `Perplexity`.
        window: Tokens per window.
        limit: How many windows or documents to use; all if None.
        toxicity: Path of a file of prompts, id of a dataset, or a list of prompts to complete.
        scorers: What decides how toxic a completion is; see `excise.eval.scorers.SCORERS`.
        completions: Completions per prompt of `toxicity`, drawn by `seed`; 0 is one greedy one.
        new_tokens: Tokens per completion.
        temperature: Temperature of sampling.
        top_p: Probability mass that nucleus sampling draws from.
        threshold: Score from which a completion counts as toxic, from 0 to 1.
        max_prompts: How many prompts of `toxicity` to use, drawn by `seed`; all if None.
        max_empty: Share of completions that may be empty; more is an error.
        repetition: Whether to measure how much greedy completions repeat themselves.
        tasks: Names of built-in tasks whose accuracy is measured, as in `ioi`.
        samples: Prompts per task.
        split: Which prompts of the tasks: `train`, `validation` or `test`.
        zero_shot: Names of lm-eval's tasks, or of groups of them; needs `excise[eval]`.
        zero_shot_folder: Folder of further lm-eval tasks.
        zero_shot_limit: Documents per lm-eval task; all if None.
        metrics: Further metrics, ready made.
        gate: A policy, as the path of its YAML file or as the dictionary in it; see `policy`.
        attribution: Files of the prompts that chose the edits, or folders of artefacts made with
            them. Measuring on one of these texts fails the gate.
        batch_size: Windows or completions per pass; each metric's own default if None.
        seed: Of all that is drawn.
        options: How models given by name are loaded.
        cache: Folder of rows measured before; True is `default_cache()`, False is none.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given a line on each model before it is measured: what, and how much memory.
        dry_run: Whether to return the `Forecast` of the most demanding model instead, and measure
            nothing.

    Returns:
        A `Report`; it prints, shows itself in a notebook and saves. `passed` is the gate's verdict.

    Raises:
        ExciseError: Nothing to measure, no such data or model, or something cannot be measured.
    """
    rules = _rules(gate)
    chosen = frozenset().union(*map(_hashes_of, attribution))
    decoding = Decoding(completions, new_tokens, temperature, top_p, seed)
    wanted: list[Metric] = []
    if perplexity is not None:
        documents, source = _documents(perplexity, limit, window, protocol == "document")
        wanted.append(Perplexity(documents, protocol, window, limit, batch_size, source))
    if toxicity is not None:
        prompts = _given(toxicity) or read_texts(os.fspath(_path(toxicity)))
        judges = tuple(get_scorer(spec) for spec in scorers)
        wanted.append(
            Toxicity(prompts, decoding, max_prompts, batch_size or 32, max_empty, judges, threshold)
        )
    if repetition:
        wanted.append(Repetition(batch_size=batch_size or 32, max_empty=max_empty))
    for task in tasks:
        get_task(task)
        drawn = partial(task_prompts, task, n=samples, seed=seed, split=split)
        wanted.append(TaskAccuracy(task, drawn, batch_size or 16, split))
    wanted += [
        ZeroShot(task, include=zero_shot_folder, limit=zero_shot_limit, batch_size=batch_size or 8)
        for name in zero_shot
        for task in leaf_tasks(name, zero_shot_folder)
    ]
    wanted += metrics
    if not wanted:
        raise ExciseError(
            "nothing to measure: give `perplexity` (a file, a datasets id or builtin), `toxicity` "
            "(a file), `repetition`, `tasks` or `zero_shot`"
        )
    kept = default_cache() if cache is True else Path(cache) if cache else None
    found, expected = [], []
    for label, loaded, seen in _loaded(models, tokenizer, options):
        if tell:
            tell(f"{label}: {forecast(loaded, wanted)}")
        if dry_run:
            weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
            expected.append(weights + max(m.plan(loaded).tokens for m in wanted) * _bytes(loaded))
            continue
        evaluation = evaluate(loaded, wanted, cache=kept, attribution=chosen, progress=progress)
        if seen is not None and not chosen:
            evaluation = replace(evaluation, seen=seen)
        found.append(replace(evaluation, model=label))
        del loaded  # one model at a time
    if dry_run:
        return Forecast(max(expected))
    first, *others = found
    pairs = [(other, first) for other in others] or [(first, None)]
    gates = [check_gate(rules, *pair) for pair in pairs] if gate is not None else []
    return Report(tuple(found), tuple(gates))


def _loaded(
    models: Any, tokenizer: Any, options: LoadOptions | None
) -> Iterator[tuple[str, Loaded, Seen | None]]:
    """Yield each model with its label, and with what is known of its texts besides its folder."""
    if not isinstance(models, Mapping):
        several = isinstance(models, Sequence) and not isinstance(models, str)
        models = [(None, one) for one in (models if several else [models])]
    named = list(models.items() if isinstance(models, Mapping) else models)
    if not named:
        raise ExciseError("`models` is empty: give a model, its name, or several of them")
    for label, one in named:
        seen = None
        if isinstance(one, str | os.PathLike):
            loaded = load_model(os.fspath(one), options)
        elif isinstance(one, HoldsModel) and not isinstance(one, Loaded):
            loaded, seen = as_loaded(one.model, one.tokenizer), one.seen
        else:  # changed since it was loaded, for all that is known
            loaded = as_loaded(one, tokenizer)
            seen = (seen_in(loaded.name) or Seen()) | NOT_TOLD
        yield label or loaded.name, loaded, seen
        del loaded


def _bytes(loaded: Loaded) -> int:
    """Return the bytes of a token's logits, in the model's precision and in float32, twice."""
    return loaded.model.config.vocab_size * (loaded.model.dtype.itemsize + 8)


def _rules(gate: Any) -> list[Rule]:
    if gate is None:
        return []
    return parse_policy(dict(gate)) if isinstance(gate, Mapping) else read_policy(gate)


def _given(texts: Texts) -> list[str]:
    """Return texts that are given as such; none where a source of them is named."""
    return [] if isinstance(texts, str | os.PathLike) else list(texts)


def _path(texts: Texts) -> "str | os.PathLike[str]":
    if isinstance(texts, str | os.PathLike):
        return texts
    raise ExciseError("the list of prompts is empty: give at least one")


def _documents(source: Texts, limit: int | None, window: int, split: bool) -> tuple[list[str], str]:
    if documents := _given(source):
        return documents, "given"
    name = os.fspath(_path(source))
    most = None if limit is None else limit * window  # documents: each has a token at least
    return read_documents(name, most, split=split), name


def _hashes_of(path: str | os.PathLike[str]) -> frozenset[str]:
    """Return the hashes of the prompts in a file, or of those a folder was made with."""
    if not Path(path).is_dir():
        texts = read_texts(os.fspath(path))
        return frozenset(one for text in texts for one in (text_hash(text), *line_hashes(text)))
    seen = seen_in(Path(path))
    if seen is None or seen.unknown:
        why = seen.unknown if seen else f"{path} does not say which prompts it was made with"
        raise ExciseError(f"{why}: give `attribution` the file that holds them")
    return seen.hashes
