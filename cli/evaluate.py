"""excise eval: what models are worth, what an edit changed, and whether that is good enough."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


@click.command(
    "eval",
    epilog="Examples: excise eval cut --perplexity text.txt --window 512 --task ioi --json   |   "
    "excise eval smollm2 cut --perplexity builtin --toxicity prompts.jsonl --repetition "
    "--gate policy.yaml -o report",
)
@shared.models_options
@click.option(
    "--perplexity", metavar="TEXT", type=shared.readable,
    help="A text file, a datasets id, or builtin.",
)  # fmt: skip
@click.option("--protocol", default="window", show_default=True, help="window, stride or document.")
@click.option("--window", default=1024, show_default=True, help="Tokens per window.")
@click.option("--limit", type=int, help="Use only the first windows or documents.")
@click.option(
    "--toxicity", metavar="PROMPTS", type=shared.readable, help="A prompts file, or a datasets id."
)
@click.option(
    "--scorer", "scorers", multiple=True, default=("profanity",), show_default=True,
    type=shared.readable,
    help="Judge of toxicity, may be repeated; see excise ls scorers.",
)  # fmt: skip
@click.option("--completions", default=25, show_default=True, help="Per prompt; 0 is greedy.")
@click.option("--new-tokens", default=20, show_default=True, help="Per completion of --toxicity.")
@click.option("--temperature", default=1.0, show_default=True, help="Of sampling.")
@click.option("--top-p", default=0.9, show_default=True, help="Of nucleus sampling.")
@click.option("--threshold", default=0.5, show_default=True, help="Score that counts as toxic.")
@click.option("--max-prompts", type=int, help="Use only so many, drawn by the seed.")
@click.option("--max-empty", default=0.2, show_default=True, help="Share of empty completions.")
@click.option("--repetition", is_flag=True, help="Greedy completions of prompts that provoke it.")
@click.option("--task", "tasks", multiple=True, help="Accuracy on a task; see excise ls tasks.")
@click.option("--samples", default=128, show_default=True, help="Prompts per task.")
@shared.split_option
@click.option(
    "--zero-shot", multiple=True, metavar="TASK", help="An lm-eval task, or a group of them."
)
@click.option("--zero-shot-folder", type=click.Path(path_type=Path), help="Local lm-eval tasks.")
@click.option("--zero-shot-limit", type=int, help="Documents per task.")
@click.option("--gate", type=click.Path(path_type=Path), help="A policy; exit code 3 if not met.")
@click.option(
    "--attribution", multiple=True, type=click.Path(path_type=Path),
    help="Prompts that chose the edit; measuring them again fails the gate.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(1),
    help="Windows, or completions, per pass.  [default: auto]",
)  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Measure anew, keep nothing.")
@click.option("--show-text", is_flag=True, help="Write what models wrote; it may offend.")
@click.option("--dry-run", is_flag=True, help="Say what would be measured, and stop.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(
    models: tuple[str, ...],
    gate: Path | None,
    attribution: tuple[Path, ...],
    no_cache: bool,
    show_text: bool,
    dry_run: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure one or more MODELs, the first of them the baseline of the others.

    Rows are kept by the content of weights, tokenizer, protocol and data, so an evaluation that
    was stopped goes on where it was, and what was measured once is not measured again.
    """
    from ..eval.models import evaluate_models

    if output:
        shared.check_output(output, overwrite, "evaluation")
    report = evaluate_models(
        models, gate=gate, attribution=attribution, options=shared.loading(options),
        cache=not no_cache, progress=True, tell=partial(say, err=True), dry_run=dry_run, **options,
    )  # fmt: skip
    if dry_run:
        return
    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    if output:
        report.save_pretrained(output, overwrite, show_text)
    say(json_text(report.to_json()) if as_json else report)
    if output and not as_json:
        say(f"written to {output}; look at {output / 'report.html'}")
    if not report.passed:
        missed = [c.name for g in report.gates for c in g.checks if not c.passed]
        say(f"excise: gate {gate} not met: {', '.join(missed)}", err=True)
        sys.exit(shared.GATE_NOT_MET)
