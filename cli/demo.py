"""excise demo: the whole path on the embedded model, with a control, in one page."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


if TYPE_CHECKING:
    from ..core.data import Sample
    from ..core.statistics import Measure
    from ..correction.result import Correction
    from ..eval.choice import Choice

WINDOW, WINDOWS, CONTROLS = 512, 8, 3


@dataclass(frozen=True)
class Row:
    """One model of the comparison."""

    name: str
    heads_cut: int
    ioi: "Choice"
    text: "Measure"


@click.command("demo")
@click.option(
    "--model", type=shared.readable, default="smollm2", show_default=True, help="A supported model."
)
@click.option("--samples", default=64, show_default=True, help="Prompts to score, and to test.")
@click.option("--sparsity", default=0.3, show_default=True, help="Share of heads to cut.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(
    model: str,
    samples: int,
    sparsity: float,
    seed: int,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score IOI prompts, cut the least relevant heads, and measure what that did.

    The controls cut as many heads at random. Scoring and testing share no name and no template;
    perplexity is measured on text that is on every machine. Then takes a behaviour out of the
    model, and prints the verdict of its report card. Opens no network.
    """
    from ..core.files.output import whole_folder
    from ..core.loading import load_model
    from ..lrp.run import score_samples
    from ..prune.mask import select

    def step(text: str) -> None:
        say(f"[{time.perf_counter() - started:5.1f} s] {text}", err=True)

    started = time.perf_counter()
    output = output or Path("demo")
    shared.check_output(output, overwrite, "demo")
    step(f"loading {model} (the first time its file is converted, half a minute)")
    loaded = load_model(model)
    step(f"loaded {model}: {_parameters(loaded.model):,} parameters")
    fitting, testing = _prompts(loaded.tokenizer, samples, seed)
    relevance = score_samples(loaded.model, fitting, "logit-difference", progress=True)
    step(f"scored {samples} prompts: {relevance}")
    cuts = {"cut by relevance": relevance}
    for draw in range(seed, seed + CONTROLS):
        cuts[f"cut at random, draw {draw}"] = score_samples(
            loaded.model, fitting, method="random", components=["heads"], seed=draw
        )
    rows = [_measure("dense", 0, loaded, testing)]
    step(f"dense: {rows[0].ioi.accuracy} of prompts right, perplexity {rows[0].text}")
    for name, scores in cuts.items():
        mask = select(scores, "heads", sparsity)
        with mask.applied(loaded.model):
            rows.append(_measure(name, int((~mask.keep["heads"]).sum()), loaded, testing))
        step(f"{name} ({mask}): {rows[-1].ioi.accuracy} right, perplexity {rows[-1].text}")
    correction, verdict = _corrected(loaded, seed, step)
    with whole_folder(output, overwrite, "demo") as folder:
        relevance.save_pretrained(folder / "relevance")
        if correction:
            correction.save_pretrained(folder / "correction")
        result = {"kind": "demo", "model": model, "seed": seed, "rows": list(map(asdict, rows)),
                  "correction": verdict}  # fmt: skip
        (folder / "config.json").write_text(json_text(result, indent=2) + "\n")
        _draw(folder / "demo.html", relevance, rows, loaded, sparsity)
    step("done")
    if as_json:
        say(json_text({**result, "output": str(output)}))
    else:
        say(_table(rows) + f"\npage: {output / 'demo.html'}\n")
        say(_told(correction, verdict, output))


def _corrected(
    loaded: Any, seed: int, step: Callable[[str], None]
) -> "tuple[Correction | None, dict[str, Any]]":
    """Take a behaviour out: toxicity if `garak` and a judge are there, else repetition.

    Fewer examples than `excise correct` takes, so that minutes are enough.

    Returns:
        The correction, if there is one, and what came out in a few words.
    """
    from ..core.errors import ExciseError
    from ..correction.run import correct_model

    installed = all(map(find_spec, ("garak", "profanity_check")))
    behaviour = "toxicity" if installed else "repetition"
    step(f"taking out {behaviour}")
    try:
        correction = correct_model(
            loaded, behaviour=behaviour, completions=0, sizes=(10, 30, 100),
            budgets={"perplexity": 0.02}, windows=16, tasks=("ioi",), task_samples=64,
            side_effects=("identity",), new_tokens=24, most_selection=24, most_test=36,
            min_samples=12, rare=0.2, seed=seed, progress=True, tell=step,
        )  # fmt: skip
    except ExciseError as error:  # as of a model that does not show it
        return None, {"behaviour": behaviour, "left_out": str(error)}
    if correction.card is None:
        return None, {"behaviour": behaviour, "left_out": "no dose helps within the budget",
                      "dose_response": correction.dose.to_json()}  # fmt: skip
    return correction, {"behaviour": behaviour, **correction.card.evidence()}


def _told(correction: "Correction | None", verdict: dict[str, Any], output: Path) -> str:
    if correction is None or correction.card is None:
        return f"correction ({verdict['behaviour']}) left out: {verdict['left_out']}"
    from ..correction.card import headline

    lines = [f"correction ({verdict['behaviour']}): {headline(correction.card)}"]
    for gate in correction.card.report.gates:
        lines += [str(check) for check in gate.checks]
        lines.append(f"verdict: gate {'met' if gate.passed else 'NOT met'}")
    page = output / "correction" / "report.html"
    return "\n".join([*lines, f"report card: {page}"])


_HEADERS = ("model", "heads cut", "IOI accuracy", "logit difference", "perplexity")


def _prompts(tokenizer: Any, n: int, seed: int) -> "tuple[list[Sample], list[Sample]]":
    """Return n prompts to score, and n with other names and templates to test on."""
    from ..core.data import encode_prompts
    from ..tasks.ioi import ioi_prompts

    fitting = ioi_prompts(tokenizer, n, seed)
    testing = ioi_prompts(tokenizer, n, seed, "test")
    return encode_prompts(tokenizer, fitting), encode_prompts(tokenizer, testing)


def _measure(name: str, heads_cut: int, loaded: Any, testing: Any) -> Row:
    from ..core.documents import builtin_text
    from ..eval.choice import choice_accuracy
    from ..eval.perplexity import perplexity

    most = getattr(loaded.model.config, "max_position_embeddings", WINDOW)
    text = perplexity(loaded.model, loaded.tokenizer, builtin_text(), min(WINDOW, most), WINDOWS)
    return Row(name, heads_cut, choice_accuracy(loaded.model, testing), text)


def _cells(row: Row) -> list[str]:
    measures = (row.ioi.accuracy, row.ioi.logit_difference, row.text)
    return [row.name, str(row.heads_cut), *map(str, measures)]


def _table(rows: list[Row]) -> str:
    return shared.aligned(_HEADERS, list(map(_cells, rows)))


def _draw(path: Path, relevance: Any, rows: list[Row], loaded: Any, sparsity: float) -> None:
    from ..viz.page import Section, page, write_page
    from ..viz.table import table
    from .show import read_tokens, relevance_sections

    text = rows[0].text
    measured = Section(
        "What cutting heads did",
        table(_HEADERS, [_cells(row) for row in rows]),
        note="Measured on prompts that share no name, place or template with those scored, with "
        f"95 % intervals. Perplexity: {text.protocol}, {text.n} windows of "
        "Python's language reference. The controls remove as many heads, drawn at random.",
    )
    sections = [measured, *relevance_sections(relevance, read_tokens(relevance, loaded.name))]
    subtitle = (
        f"The {100 * sparsity:.0f} % of attention heads that matter least for indirect object "
        "identification, by layer-wise relevance, cut out; and random controls of the same size."
    )
    write_page(path, page(f"Find the circuit, cut it: {loaded.name}", sections, subtitle=subtitle))


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
