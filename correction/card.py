"""The report card in JSON and Markdown; `card_page` draws the same."""

from collections.abc import Sequence
from typing import Any

from ..core.files.escape import markdown
from ..core.files.json_text import finite
from ..core.statistics import Measure, short
from ..eval.compare import Comparison
from ..eval.report_tables import Table, markdown_table
from .controls import Band
from .data.target import Judgement
from .dose import percent
from .proof import ReportCard


NOT_SAID = (
    "The numbers are of these prompts and this judge. Prompts of another kind, another language or "
    "an adversary's may still bring the behaviour back.",
    "Judges that look at words cannot see what is said politely, and take harmless words for "
    "offences; the blindness of each is measured below. A second judge helps where it errs "
    "otherwise.",
    "That cutting these components works does not show that they are the only ones, or that the "
    "behaviour is stored in them: others may carry it as well, or learn to.",
    "The random edits share the layers and the number of components. That the chosen ones do more "
    "does not say that another way of choosing would do less.",
    "The dose was chosen on few examples. Its numbers there flatter it; those of the test do not.",
)
"""What a reader could believe wrongly."""


def card_json(card: ReportCard) -> dict[str, Any]:
    """Return JSON values: those of an evaluation report, and `correction`."""
    controls = card.controls
    found = {
        "behaviour": card.target.name,
        "passed": card.passed,
        "edit": card.edit.digest,
        "components": card.edit.n_components,
        "judge": card.target.judge.name,
        "gain": _measure(card.gain),
        "second_judge": card.target.second.name if card.target.second else None,
        "second_gain": _measure(_gain(card, card.target.second)) if card.target.second else None,
        "dose_response": card.dose.to_json(),
        "budget": card.dose.budget,
        "controls": {
            "gain": controls.gain.to_json(controls.failed),
            "perplexity": controls.cost.to_json(controls.failed),
            "failed": controls.failed,
        }
        if controls
        else None,
        "cut_by_layer": cut_by_layer(card),
        "durability": [row.to_json() for row in card.durable],
        **card.facts,
    }
    return {**card.report.to_json(), "kind": "correction", "correction": finite(found)}


def card_markdown(card: ReportCard) -> str:
    """Return the card for humans."""
    gate = "met" if card.passed else "NOT met"
    parts = [
        f"# Correction: {markdown(card.target.name)} of {markdown(card.before.model)}",
        f"**Gate {gate}.** {markdown(headline(card))}",
        markdown_table(*summary_table(card)),
        "## How much to cut",
        markdown_table(*card.dose.table()),
        dose_note(card),
    ]
    if card.controls:
        parts += ["## Random edits", markdown_table(*controls_table(card)), CONTROLS_NOTE]
    if card.durable:
        parts += ["## Is it still gone", markdown_table(*durability_table(card)), DURABILITY_NOTE]
    parts += ["## What was cut", markdown_table(*layers_table(card))]
    parts += ["## What this card does not say", *(f"- {text}" for text in NOT_SAID)]
    warnings: Sequence[str] = card.facts.get("warnings", ())
    if warnings:
        parts += ["## Warnings about the examples", *(f"- {markdown(text)}" for text in warnings)]
    return "\n\n".join([*parts, *card.report.markdown_parts()]) + "\n"


def headline(card: ReportCard) -> str:
    """Say in one sentence what was gained and what it cost."""
    comparison = card.target.judge.compare(card.before, card.after)
    cost = _named(card, "perplexity.token_perplexity")
    before, after = (o.measures[comparison.statistic.name] for o in (
        comparison.before, comparison.after))  # fmt: skip
    return (
        f"{card.edit.n_components} components scaled: {card.target.judge.name} from {before} to "
        f"{after} on {card.gain.n} unseen examples, {percent(card.gain)} gone; perplexity "
        f"{percent(cost.relative)}."
    )


def summary_table(card: ReportCard) -> Table:
    """One row per thing that was asked: before, after, change."""
    asked = [("target", card.target.judge)]
    if card.target.second:
        asked.append(("second judge", card.target.second))
    rows = [_row(role, judge.compare(card.before, card.after)) for role, judge in asked]
    own = {judge.outcome for _, judge in asked}
    for comparison in _headlines(card):
        if comparison.outcome in own or comparison.outcome.startswith("toxicity@"):
            continue
        rows.append(_row("cost" if comparison.outcome == "perplexity" else "side effect",
                         comparison))  # fmt: skip
    return ["", "", "before", "after", "change"], rows


def _row(role: str, comparison: Comparison) -> list[str]:
    statistic = comparison.statistic.name
    values = (o.measures[statistic] for o in (comparison.before, comparison.after))
    return [f"{comparison.outcome} {statistic}", role, *map(str, values),
            percent(comparison.relative)]  # fmt: skip


def dose_note(card: ReportCard) -> str:
    """Say how the dose was chosen."""
    n = card.dose.doses[0].gain.n if card.dose.doses and card.dose.doses[0].gain else 0
    return (
        f"Measured on {n} examples and a text for selection only, which the rest of this card does "
        f"not use. Chosen is the largest effect whose perplexity stays within "
        f"{100 * card.dose.budget:g} %, by its one-sided 95 % upper bound where there are enough "
        "windows. A row of doses ends where perplexity is far beyond."
    )


CONTROLS_NOTE = (
    "Each cuts as many components of each layer as the edit does, by the same factors, drawn among "
    "those that are neither chosen nor protected, and is measured on the same examples. p is the "
    "share of all edits, the chosen one included, that do at least as much."
)

DURABILITY_NOTE = (
    "The edit was made first and the model converted, or trained, afterwards; the unedited model "
    "went the same way. What is shown is their difference."
)


def controls_table(card: ReportCard) -> Table:
    """The edit among the random ones."""
    assert card.controls
    failed = card.controls.failed

    def row(what: str, band: Band) -> list[str]:
        low, high = band.band
        mean = sum(band.random) / len(band.random)
        return [what, f"{100 * band.edit:+.2f} %", f"{100 * mean:+.2f} %",
                f"{100 * low:+.2f} to {100 * high:+.2f} %", f"{100 * max(band.random):+.2f} %",
                str(len(band.random)), short(band.p(failed))]  # fmt: skip

    rows = [
        row("behaviour gone", card.controls.gain),
        [*row("perplexity", card.controls.cost)[:-1], "-"],
    ]
    headers = ["", "this edit", "random, mean", "random, 5 to 95 %", "random, most", "edits", "p"]
    return headers, rows


def durability_table(card: ReportCard) -> Table:
    """One row per form of the model."""
    rows = [
        [row.form, percent(row.gain) if row.gain else "-", percent(row.cost) if row.cost else "-",
         row.note]
        for row in card.durable
    ]  # fmt: skip
    return ["model", "behaviour gone", "perplexity", ""], rows


def cut_by_layer(card: ReportCard) -> dict[str, list[int]]:
    """Count what is scaled in each layer: heads, neurons, and weights by their matrix."""
    layers = range(card.shape[0])
    counts = {
        name: [sum(at == layer for at, _ in units) for layer in layers]
        for name, units in (("heads", card.edit.heads), ("neurons", card.edit.neurons))
        if units
    }
    for name, (indices, _) in card.edit.weights.items():
        layer, matrix = name.split(".layers.")[1].removesuffix(".weight").split(".", 1)
        counts.setdefault(matrix, [0 for _ in layers])[int(layer)] += indices.numel()
    return counts


def layers_table(card: ReportCard) -> Table:
    """One row per layer in which something was cut."""
    counts = cut_by_layer(card)
    rows = [
        [str(layer), *(str(column[layer]) for column in counts.values())]
        for layer in range(card.shape[0])
        if any(column[layer] for column in counts.values())
    ]
    return ["layer", *counts], rows


def _gain(card: ReportCard, judge: Judgement) -> Measure:
    return judge.gain(card.before, card.after)


def _measure(measure: Measure) -> dict[str, Any]:
    return {"value": measure.value, "ci": list(measure.ci), "n": measure.n}


def _headlines(card: ReportCard) -> list[Comparison]:
    found: Sequence[Comparison] = card.report.comparisons[0][1]
    return [c for c in found if c.statistic == c.before.statistics[0]]


def _named(card: ReportCard, name: str) -> Comparison:
    return next(c for c in card.report.comparisons[0][1] if c.name == name)
