"""excise eval: what models are worth, what an edit changed, and whether that is good enough."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


if TYPE_CHECKING:
    from ..eval.outcome import Metric
    from ..eval.report import Report
    from ..eval.run import Evaluation


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
    from ..core.loading import load_model
    from ..eval.gate import check_gate
    from ..eval.policy import read_policy
    from ..eval.report import Report
    from ..eval.run import default_cache, evaluate, forecast

    rules = read_policy(gate) if gate else []
    chosen = frozenset().union(*map(_attribution, attribution))
    if output:
        shared.check_output(output, overwrite, "evaluation")
    loading = shared.loading(options)
    metrics = _metrics(options)
    found: list[Evaluation] = []
    for name in models:
        loaded = load_model(name, loading)
        tell = partial(_tell, name)
        if dry_run:
            tell(forecast(loaded, metrics))
            continue
        evaluation = evaluate(
            loaded, metrics, tell=tell, cache=None if no_cache else default_cache(), progress=True,
            attribution=chosen,
        )  # fmt: skip
        for outcome, count in evaluation.reused().items():
            say(f"warning: {count} texts of {outcome} chose the edit of {name}", err=True)
        found.append(evaluation)
        del loaded  # one model at a time
    if dry_run:
        return
    baseline, *others = found
    for other in others:
        if other.model_hash == baseline.model_hash:
            say(f"warning: {other.model} has the weights of {baseline.model}", err=True)
    pairs = [(other, baseline) for other in others] or [(baseline, None)]
    gates = [check_gate(rules, *pair) for pair in pairs] if gate else []
    report = Report(tuple(found), tuple(gates))
    if output:
        _write(report, output, overwrite, show_text)
    say(json_text(report.to_json()) if as_json else _text(report, output))
    if not report.passed:
        missed = [c.name for g in report.gates for c in g.checks if not c.passed]
        say(f"excise: gate {gate} not met: {', '.join(missed)}", err=True)
        sys.exit(shared.GATE_NOT_MET)


def _tell(model: str, forecast: str) -> None:
    say(f"{model}: {forecast}", err=True)


def _metrics(options: dict[str, Any]) -> "list[Metric]":
    """Make what the options ask for, reading every file before a model is loaded."""
    from ..core.errors import ExciseError

    options = dict(options)
    made = [*_perplexity(options), *_toxicity(options), *_repetition(options), *_tasks(options)]
    made += _zero_shot(options)
    if not made:
        raise ExciseError(
            "say what to measure: --perplexity FILE|HUB_ID|builtin, --toxicity FILE, "
            "--repetition, --task NAME or --zero-shot NAME"
        )
    return made


def _perplexity(options: dict[str, Any]) -> "list[Metric]":
    from ..core.documents import read_documents
    from ..eval.perplexity import Perplexity

    source, limit, window = (options[name] for name in ("perplexity", "limit", "window"))
    if source is None:
        return []
    most = None if limit is None else limit * window  # documents: each has a token at least
    documents = read_documents(source, most, split=options["protocol"] == "document")
    batch = options["batch_size"]
    return [Perplexity(documents, options["protocol"], window, limit, batch, source)]


def _toxicity(options: dict[str, Any]) -> "list[Metric]":
    from ..core.documents import read_texts
    from ..core.generation import Decoding
    from ..eval.scorers import get_scorer
    from ..eval.toxicity import Toxicity

    if options["toxicity"] is None:
        return []
    drawn = ("completions", "new_tokens", "temperature", "top_p", "seed")
    decoding = Decoding(**{name: options[name] for name in drawn})
    prompts = read_texts(options["toxicity"])
    scorers = tuple(get_scorer(spec) for spec in options["scorers"])
    return [
        Toxicity(
            prompts, decoding, options["max_prompts"], options["batch_size"] or 32,
            options["max_empty"], scorers, options["threshold"],
        )
    ]  # fmt: skip


def _repetition(options: dict[str, Any]) -> "list[Metric]":
    from ..eval.repetition import Repetition

    if not options["repetition"]:
        return []
    batch = options["batch_size"] or 32
    return [Repetition(batch_size=batch, max_empty=options["max_empty"])]


def _tasks(options: dict[str, Any]) -> "list[Metric]":
    from ..eval.choice import TaskAccuracy
    from ..tasks.registry import get_task, task_prompts

    def generator(task: str) -> Any:
        get_task(task)
        drawn = (options[name] for name in ("samples", "seed", "split"))
        return lambda tokenizer, drawn=tuple(drawn): task_prompts(task, tokenizer, *drawn)

    make = partial(TaskAccuracy, batch_size=options["batch_size"] or 16, split=options["split"])
    return [make(task, generator(task)) for task in options["tasks"]]


def _zero_shot(options: dict[str, Any]) -> "list[Metric]":
    if not options["zero_shot"]:
        return []
    from ..eval.lm_harness import leaf_tasks
    from ..eval.zero_shot import ZeroShot

    include, limit = options["zero_shot_folder"], options["zero_shot_limit"]
    batch = options["batch_size"] or 8
    return [
        ZeroShot(task, include=include, limit=limit, batch_size=batch)
        for name in options["zero_shot"]
        for task in leaf_tasks(name, include)
    ]


def _attribution(path: Path) -> frozenset[str]:
    """Return the hashes of the prompts in a file, or of those a folder was made with."""
    from ..core.documents import read_texts
    from ..core.errors import ExciseError
    from ..core.provenance import seen_in
    from ..core.texts import line_hashes, text_hash

    if not path.is_dir():
        texts = read_texts(str(path))
        return frozenset(one for text in texts for one in (text_hash(text), *line_hashes(text)))
    if (seen := seen_in(path)) is None or seen.unknown:
        why = seen.unknown if seen else f"{path} does not say which prompts it was made with"
        raise ExciseError(f"{why}: give --attribution the file that holds them")
    return seen.hashes


def _write(report: "Report", output: Path, overwrite: bool, show_text: bool) -> None:
    from ..core.files.artefact import SCHEMA, versions
    from ..core.files.output import whole_folder
    from ..eval.gate import junit
    from ..eval.report_page import report_page
    from ..viz.page import write_page

    with whole_folder(output, overwrite, "evaluation") as folder:
        head = {"schema": SCHEMA, "kind": "evaluation", "versions": versions()}
        names = [evaluation.model for evaluation in report.evaluations]
        (folder / "config.json").write_text(json_text({**head, "models": names}, indent=2) + "\n")
        content = json_text(report.to_json(), indent=2)
        (folder / "report.json").write_text(content + "\n")
        (folder / "report.md").write_text(report.to_markdown(), encoding="utf-8")
        write_page(folder / "report.html", report_page(report, show_text))
        if report.gates:
            (folder / "junit.xml").write_text(junit(report.gates), encoding="utf-8")
        for number, evaluation in enumerate(report.evaluations, 1):
            _write_units(evaluation, folder / "units" / f"{number}", show_text)


def _write_units(evaluation: "Evaluation", folder: Path, show_text: bool) -> None:
    """Write per-unit values, a JSONL file per outcome, the model's name in each row."""
    from ..core.files.json_text import finite

    folder.mkdir(parents=True)
    for name, outcome in evaluation.outcomes.items():
        columns = {key: values.tolist() for key, values in outcome.columns.items()}
        if show_text:
            columns.update(outcome.texts)
        safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)[:80]
        if (folder / f"{safe}.jsonl").exists():  # two scorers, one of a-b and one of a/b
            safe = f"{safe}-{sum(1 for _ in folder.iterdir())}"
        with (folder / f"{safe}.jsonl").open("w", encoding="utf-8") as file:
            for index, unit in enumerate(outcome.units):
                row = {key: finite(values[index]) for key, values in columns.items()}
                file.write(json_text({"model": evaluation.model, "unit": unit, **row}) + "\n")


def _text(report: "Report", output: Path | None) -> str:
    """Render for a terminal."""
    from ..eval.report import caveats, changes_table, measured_table
    from .options import aligned

    parts = [aligned(*measured_table(report.evaluations))]
    for name, outcome in report.evaluations[0].outcomes.items():
        parts.append(f"{name}: {outcome.protocol} ({outcome.headline.n} units)")
    for other, found in report.comparisons:
        parts.append(f"\n{other.model} against {report.evaluations[0].model}")
        parts.append(aligned(*changes_table(found)))
    parts += [f"note: {text}" for text in caveats(report)[1:]]
    for gate in report.gates:
        parts.append(f"\ngate {'met' if gate.passed else 'NOT met'}: {gate.model}")
        parts += [str(check) for check in gate.checks]
    if output:
        parts.append(f"written to {output}; look at {output / 'report.html'}")
    return "\n".join(parts)
