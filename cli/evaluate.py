"""excise eval: what models are worth."""

import json
from pathlib import Path
from typing import Any

import click

from . import options as shared


_TEXTS = (".txt", ".md", ".rst", ".text", ".json", ".jsonl", ".csv")
"""File names that are meant as files even where there is none."""


@click.command(
    "eval", epilog="Example: excise eval cut --perplexity text.txt --window 512 --task ioi --json"
)
@shared.model_options
@click.option("--perplexity", help="A text file, a datasets id, or builtin.")
@click.option("--window", default=1024, show_default=True, help="Tokens per window.")
@click.option("--limit", type=int, help="Use only the first windows.")
@click.option("--task", "tasks", multiple=True, help="Accuracy on a task; see excise ls tasks.")
@click.option("--samples", default=128, show_default=True, help="Prompts per task.")
@shared.seed_option
@shared.json_option
def command(
    perplexity: str | None,
    window: int,
    limit: int | None,
    tasks: tuple[str, ...],
    samples: int,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure perplexity and task accuracy of MODEL."""
    from dataclasses import asdict

    from ..circuits.tasks import task_prompts
    from ..core.data import dataset_text, encode_prompts, read_text
    from ..core.errors import ExciseError
    from ..eval import perplexity as measured
    from ..eval.choice import choice_accuracy
    from ..eval.text import builtin_text

    if perplexity is None and not tasks:
        raise ExciseError("say what to measure: --perplexity FILE|HUB_ID|builtin or --task NAME")
    text = None
    if perplexity == "builtin":
        text = builtin_text()
    elif perplexity is not None:
        local = Path(perplexity).is_file() or Path(perplexity).suffix in _TEXTS
        most = None if limit is None else limit * window  # documents: each has a token at least
        text = read_text(perplexity) if local else "\n\n".join(dataset_text(perplexity, most))
    loaded = shared.load(options)
    result: dict[str, Any] = {"model": loaded.name}
    lines = []
    if text is not None:
        found = measured.perplexity(
            loaded.model, loaded.tokenizer, text, window, limit, seed=seed, progress=True
        )
        result["perplexity"] = {**asdict(found), "text": perplexity}
        lines.append(f"perplexity  {found}  ({found.protocol}, {found.n} windows)")
    for task in tasks:
        prompts = task_prompts(task, loaded.tokenizer, samples, seed)
        choice = choice_accuracy(loaded.model, encode_prompts(loaded.tokenizer, prompts))
        result.setdefault("tasks", {})[task] = asdict(choice)
        lines.append(f"{task} accuracy  {choice.accuracy}  ({choice.accuracy.n} prompts)")
        lines.append(f"{task} logit difference  {choice.logit_difference}")
    click.echo(json.dumps(result) if as_json else "\n".join(lines))
