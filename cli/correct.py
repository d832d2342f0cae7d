"""excise correct: take a behaviour out of a model, and prove it."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..core.errors import ExciseError, shown
from ..core.files.json_text import json_text
from ..core.files.numbers import amount, number, whole_number
from . import options as shared
from .options import GATE_NOT_MET
from .terminal import say


if TYPE_CHECKING:
    from ..correction.result import Correction


def _sizes(_ctx: Any, _param: Any, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = [whole_number(part) for part in text.split(",")]
    if None in sizes:
        raise ExciseError(
            f"--sizes is {shown(text)}: give whole numbers with commas, as in 10,30,100"
        )
    return tuple(size for size in sizes if size is not None)


def _factors(_ctx: Any, _param: Any, texts: tuple[str, ...]) -> tuple[float | str, ...]:
    def one(text: str) -> float | str:
        if text in ("own", "learned"):
            return text
        if (factor := number(text)) is None:
            raise ExciseError(f"--factor is {shown(text)}: give a number below 1, learned, or own")
        return factor

    return tuple(dict.fromkeys(map(one, texts)))


def _budgets(_ctx: Any, _param: Any, texts: tuple[str, ...]) -> dict[str, float]:
    budgets = {}
    for text in texts:
        name, equals, written = text.partition("=")
        share = amount(written)
        if not equals or share is None:
            raise ExciseError(f"budget {shown(text)}: write NAME=SHARE, as perplexity=1%")
        budgets[name] = share[0]
    return budgets


def _share(_ctx: Any, param: click.Parameter, text: str) -> float:
    if (share := amount(text)) is None:
        raise ExciseError(f"{param.opts[0]} is {shown(text)}: give a share, as in 30%")
    return share[0]


@click.command(
    "correct",
    epilog="Examples: excise correct smollm2 --behaviour repetition -o edit   |   excise correct "
    "MODEL --undesired bad.jsonl --general text.txt --judge words:list.txt -o edit   |   "
    "then: excise apply MODEL edit -o corrected",
)
@shared.model_options
@click.option("--behaviour", help="A recipe: toxicity or repetition.")
@click.option("--undesired", type=click.Path(path_type=Path), help="Text, JSONL or pairs (TSV).")
@click.option("--general", type=click.Path(path_type=Path), help="What the model should keep.")
@click.option(
    "--prompts", type=shared.readable,
    help="A file or datasets id; completed to select and to test.",
)  # fmt: skip
@click.option(
    "--judge", "judges", multiple=True, type=shared.readable,
    help="A scorer of completions; a second one only reports. See excise ls scorers.",
)  # fmt: skip
@click.option("--examples", default=400, show_default=True, help="Undesired ones at most.")
@click.option(
    "--completions", type=int,
    help="Samples per prompt, from which pairs to attribute with are made; 0 takes greedy ones, "
    "unpaired.  [default: 12 for toxicity, else 0]",
)  # fmt: skip
@click.option(
    "--component", default="neurons", show_default=True, help="neurons, heads or weights."
)
@click.option("--method", default="lrp", show_default=True, help="How components are ranked.")
@click.option(
    "--attribution-dtype",
    help="Rank and learn in a copy, as in bfloat16: faster where the machine has it.  [default: "
    "the model's]",
)  # fmt: skip
@click.option(
    "--sizes",
    callback=_sizes,
    help="Doses to try.  [default: 10,30,100,300,1000; weights 100,1000,10000]",
)
@click.option(
    "--factor", "factors", multiple=True, default=("0", "0.5"), show_default=True,
    callback=_factors,
    help="What components are scaled by, may be repeated: a number, learned for each, or own "
    "(aura's).",
)  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True, callback=_budgets,
    help="NAME=SHARE: perplexity, repetition, identity, tasks, or a task.  [default: "
    "perplexity=1%]",
)  # fmt: skip
@click.option("--least", default="0%", show_default=True, callback=_share,
              help="Share that must be shown gone.")  # fmt: skip
@click.option(
    "--perplexity", type=shared.readable, default="builtin", show_default=True,
    help="Text, id, or builtin.",
)  # fmt: skip
@click.option("--window", default=128, show_default=True, help="Tokens per window.")
@click.option("--windows", default=100, show_default=True, help="To test; half as many to select.")
@click.option("--task", "tasks", multiple=True, help="[default: all that the tokenizer can do]")
@click.option("--task-samples", default=128, show_default=True, help="Prompts per task.")
@shared.split_option
@click.option("--new-tokens", type=int, help="Per completion.  [default: 20; repetition 50]")
@click.option("--controls", default=20, show_default=True, help="Random edits beside it.")
@click.option("--durability", is_flag=True, help="Is it still gone after conversion, training?")
@click.option("--gate", type=click.Path(path_type=Path), help="A policy instead of the budgets.")
@click.option("--min-samples", default=30, show_default=True, help="Below, the gate is not met.")
@click.option("--rare", default="3%", show_default=True, callback=_share,
              help="Share of units in which damage must not stay unseen.")  # fmt: skip
@click.option("--no-cache", is_flag=True, help="Measure anew, keep nothing.")
@click.option("--resume", is_flag=True, help="Keep what is found beside the output; go on from it.")
@click.option("--show-text", is_flag=True, help="Write what models wrote; it may offend.")
@click.option("--dry-run", is_flag=True, help="Say what it would need, and stop.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(
    output: Path | None, overwrite: bool, as_json: bool, dry_run: bool, resume: bool, **options: Any
) -> None:
    """Find what carries a behaviour in MODEL, cut it under a budget, and test that on unseen data.

    Writes the edit with its report card to a folder. MODEL stays as it is: excise apply writes the
    corrected one. Exit code 3 where the gate is not met.
    """
    from ..core.files.output import progress_of
    from ..core.loading import load_model
    from ..correction.config import CorrectionConfig
    from ..correction.run import correct_model

    if output is None and not dry_run:
        raise ExciseError("say where the edit goes: -o FOLDER")
    if output is not None and not dry_run:
        shared.check_output(output, overwrite, "edit")
    started = time.perf_counter()

    def tell(text: str) -> None:
        say(f"[{time.perf_counter() - started:5.0f} s] {text}", err=True)

    show_text, model = options.pop("show_text"), options.pop("model")
    loading, cache = shared.loading(options), not options.pop("no_cache")
    config = CorrectionConfig(cache=cache, **options)
    loaded = load_model(model, loading)
    if dry_run:
        for line in correct_model(loaded, config=config, dry_run=True).splitlines():
            tell(line)
        return
    assert output is not None
    kept = progress_of(output) if resume else None
    correction = correct_model(loaded, config=config, resume=kept, progress=True, tell=tell)
    if correction.card is None:
        _refuse(correction, output, as_json)
    correction.save_pretrained(output, overwrite, show_text)
    _print(correction, output, as_json)
    if not correction.gate_met:
        missed = [c.name for g in correction.card.report.gates for c in g.checks if not c.passed]
        say(f"excise: gate not met: {', '.join(missed)}", err=True)
        sys.exit(GATE_NOT_MET)


def _refuse(correction: "Correction", output: Path, as_json: bool) -> NoReturn:
    """Say which doses were tried where none will do; nothing is written."""
    dose = correction.dose
    if as_json:
        found = {"passed": False, "output": None, "dose_response": dose.to_json()}
        say(json_text(found))
    else:
        say(shared.aligned(*dose.table()))
    say(
        f"excise: no dose keeps perplexity within {100 * dose.budget:g} % and removes anything, so "
        f"{output} is not written: give smaller --sizes, a --factor nearer 1, or a larger --budget",
        err=True,
    )
    sys.exit(GATE_NOT_MET)


def _print(correction: "Correction", output: Path, as_json: bool) -> None:
    from ..correction.card import card_json, controls_table, durability_table, summary_table

    card = correction.card
    assert card is not None
    if as_json:
        found = {**card_json(card), "output": str(output)}
        say(json_text(found))
        return
    say(str(card.edit))
    parts = [shared.aligned(*card.dose.table()), shared.aligned(*summary_table(card))]
    if card.controls:
        parts.append(shared.aligned(*controls_table(card)))
    if card.durable:
        parts.append(shared.aligned(*durability_table(card)))
    say("\n\n".join(["", *parts, ""]))
    for gate in card.report.gates:
        say(f"gate {'met' if gate.passed else 'NOT met'}: {gate.model}")
        for check in gate.checks:
            say(str(check))
    say(f"written to {output}; look at {output / 'report.html'}")
