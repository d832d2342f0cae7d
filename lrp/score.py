"""The relevance of a model's components on reference data, as one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.data import check_length
from ..core.errors import ExciseError, shown
from ..core.loading import Loaded, LoadOptions, as_loaded
from ..core.memory import Forecast
from ..tasks.sources import Source
from .fitter import COMPONENTS
from .methods import Aggregate, check_aggregate, get_method
from .run import choose_batch_size, forecast, score_samples
from .targets import Target, get_target


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..tasks.registry import Split
    from ..tasks.sources import Prompts, Texts


def score(
    model: "Loaded | PreTrainedModel | str | Path",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    task: str | None = None,
    prompts: "Prompts | None" = None,
    text: "Texts | None" = None,
    dataset: str | None = None,
    samples: int = 64,
    length: int = 512,
    split: "Split" = "train",
    target: Target | str | None = None,
    method: str = "lrp",
    components: Sequence[str] = COMPONENTS,
    weights: Sequence[str] = (),
    aggregate: Aggregate = "signed",
    epsilon: float = 0.0,
    steps: int = 8,
    skip_first_token: bool = False,
    seed: int = 0,
    batch_size: int | str = "auto",
    resume: str | Path | None = None,
    progress: bool = False,
    dry_run: bool = False,
    load_options: LoadOptions | None = None,
    tell: Callable[[Forecast], None] | None = None,
) -> Any:
    """Score heads, neurons, tokens and weights of a model on one source of reference data.

    Args:
        model: A model, or the name or folder of one; see `excise.core.loading.as_loaded`.
        tokenizer: The model's own; needed only beside a bare `PreTrainedModel`.
        task: One source: a built-in task, `prompts`, `text` or `dataset`; see
            `excise.tasks.sources.Source.of`, also for `samples`, `length` and `split`.
        prompts: Path of a JSONL file, or a list.
        text: Path of a text file, `builtin`, or a list of documents.
        dataset: `id[:config[:split]]` of a dataset of the hub.
        samples: How many samples at most.
        length: Tokens per sample of a text or dataset.
        split: Of a task's prompts.
        target: What is explained: a name of `TARGETS`, or a callable on (logits, batch). By
            default the logit difference of a task, the logit of prompts' answers, and every next
            token of texts.
        method: A name of `METHODS`.
        components: Which of `heads`, `neurons`, `tokens`.
        weights: Glob patterns of linears whose weights are scored, as in `*mlp*`.
        aggregate: `signed`, `abs` (per sample) or `square` (second moment per token).
        epsilon: Stabiliser of linear layers, for methods with relevance rules.
        steps: Gradients averaged by integrated gradients.
        skip_first_token: Leave each sample's first token out of heads, neurons and weights.
        seed: Of a task's prompts, and of the method `random`.
        batch_size: Samples per pass; `auto` takes what fits into half of the free memory.
        resume: Folder for progress: an interrupted call goes on from there.
        progress: Whether to draw a progress bar on a terminal.
        dry_run: Return the `Forecast` instead; no pass is made.
        load_options: How to load a model that is given by name.
        tell: Called with the forecast, of which a batch is timed, before the work starts.

    Returns:
        The `Relevance`: means over all samples, with hashes of their texts, source and seed.

    Raises:
        ExciseError: A source, model or name that cannot be used; names it before the model is
            loaded where that can be known.
    """
    source = Source.of(task, prompts, text, dataset, samples=samples, length=length, seed=seed,
                       split=split)  # fmt: skip
    target = target or source.default_target
    if isinstance(target, str):
        get_target(target)
    check_aggregate(get_method(method), aggregate, bool(weights))
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ExciseError(
            f"`batch_size` is {shown(batch_size)}: give a whole number from 1, or auto"
        )
    loaded = as_loaded(model, tokenizer, load_options=load_options)
    found = source.samples(loaded.tokenizer, target if isinstance(target, str) else "")
    check_length(found, loaded.model.config)
    fit: Mapping[str, Any] = {
        "target": target, "method": method, "components": components, "weights": weights,
        "aggregate": aggregate, "epsilon": epsilon, "steps": steps,
        "skip_first_token": skip_first_token, "seed": seed,
    }  # fmt: skip
    size = batch_size
    if not isinstance(size, int):
        size = choose_batch_size(loaded.model, found, **fit)
    if dry_run or tell:
        expected = forecast(loaded.model, found, size, probe=not dry_run, **fit)
        if tell:
            tell(expected)
        if dry_run:
            return expected
    relevance = score_samples(
        loaded.model, found, batch_size=size, resume=resume, progress=progress, **fit
    )
    return replace(relevance, config={**relevance.config, **source.provenance})
