"""The report card as one HTML file: verdict, dose-response, random edits, what was cut."""

import math
from collections.abc import Mapping

from ..edits.changes import Unit
from ..eval.report_page import report_sections
from ..viz.chart import Point, Series, line_chart
from ..viz.heatmap import heatmap
from ..viz.page import Section, page
from ..viz.table import table
from ..viz.text import escape
from .card import (
    CONTROLS_NOTE,
    DURABILITY_NOTE,
    NOT_SAID,
    controls_table,
    dose_note,
    durability_table,
    headline,
    layers_table,
    summary_table,
)
from .dose import Dose, DoseResponse, factor_text
from .proof import ReportCard


COLUMNS = 64
"""Most columns of the picture of what was cut; with more units they stand in groups."""


def card_page(card: ReportCard, show_text: bool = False) -> str:
    """Draw a card.

    Args:
        card: What was found.
        show_text: Whether to show what the models wrote; it may offend.
    """
    gate, *rest = report_sections(card.report, show_text)
    sections = [
        Section("What was gained and what it cost", table(*summary_table(card)), headline(card)),
        gate,
        Section("How much to cut", _dose_charts(card.dose) + table(*card.dose.table()),
                dose_note(card)),
    ]  # fmt: skip
    if card.controls:
        body = _controls_chart(card) + table(*controls_table(card))
        sections.append(Section("Random edits", body, CONTROLS_NOTE))
    sections.append(_cut(card))
    if card.durable:
        sections.append(
            Section("Is it still gone", table(*durability_table(card)), DURABILITY_NOTE)
        )
    items = [*NOT_SAID, *(f"Of the examples: {text}" for text in card.facts.get("warnings", ()))]
    said = "".join(f"<p>{escape(text)}</p>" for text in items)
    sections.append(Section("What this card does not say", said))
    verdict = "met" if card.passed else "not met"
    return page(
        f"Correction: {card.target.name} of {card.before.model}",
        [*sections, *rest],
        subtitle=f"Gate {verdict}. {headline(card)}",
        footer=f"edit {card.edit.digest[:16]}",
    )


def _dose_charts(dose: DoseResponse) -> str:
    sizes = sorted({one.size for one in dose.doses})
    ticks = {float(at): str(size) for at, size in enumerate(sizes)}

    def point(one: Dose, gain: bool) -> Point:
        measure = one.gain if gain else one.cost.relative
        at, label = float(sizes.index(one.size)), "chosen" if one is dose.chosen else ""
        if measure is None:
            return Point(at, math.nan, label=label)
        low, high = (100 * end if math.isfinite(end) else 100 * measure.value
                     for end in measure.ci)  # fmt: skip
        return Point(at, 100 * measure.value, min(low, high), max(low, high), label)

    charts = []
    for gain, title in ((True, "behaviour gone"), (False, "perplexity")):
        series = [
            Series(
                f"x {factor_text(factor)}",
                [point(d, gain) for d in dose.doses if d.factor == factor],
            )
            for factor in dict.fromkeys(one.factor for one in dose.doses)
        ]
        charts.append(
            line_chart(series[:8], title=f"{title} by dose", x_label="components",
                       y_label=f"{title}, %", x_ticks=ticks, interval="95 % interval")
        )  # fmt: skip
    return "".join(charts)


def _controls_chart(card: ReportCard) -> str:
    assert card.controls
    gain, band = card.gain, card.controls.gain
    low, high = band.band
    start, end = (100 * bound if math.isfinite(bound) else 100 * gain.value for bound in gain.ci)
    mean = sum(band.random) / len(band.random)
    series = [
        Series("this edit", [Point(0.0, 100 * gain.value, start, end)]),
        Series("random", [Point(1.0, 100 * mean, 100 * min(low, mean), 100 * max(high, mean))]),
    ]
    return line_chart(
        series, title="behaviour gone", x_label="edit", y_label="behaviour gone, %",
        x_ticks={0.0: "this edit", 1.0: f"{len(band.random)} random"},
        interval="95 % interval of the edit, 5 to 95 % of the random ones",
    )  # fmt: skip


def _cut(card: ReportCard) -> Section:
    layers, heads, neurons = card.shape
    pictures = []
    for name, units, width in (
        ("head", card.edit.heads, heads), ("neuron", card.edit.neurons, neurons)
    ):  # fmt: skip
        if units:
            group = -(-width // COLUMNS)
            label = name if group == 1 else f"group of {group} {name}s"
            pictures.append(
                heatmap(
                    cut_map(units, layers, width, group),
                    title=f"what was cut: {len(units)} {name}s",
                    column_label=label,
                    value_label="share cut" if group == 1 else f"{name}s cut",
                )
            )
    if card.edit.weights:
        pictures.append(table(*layers_table(card)))
    return Section(
        "What was cut", "".join(pictures),
        "Layer 0 is at the bottom. A component scaled by f counts as 1 - f.",
    )  # fmt: skip


def cut_map(units: Mapping[Unit, float], layers: int, width: int, group: int) -> list[list[float]]:
    """Add up how much was cut in each group of neighbours.

    Args:
        units: Factor of each (layer, unit).
        layers: Rows.
        width: Units per layer.
        group: Neighbours per column.
    """
    rows = [[0.0] * -(-width // group) for _ in range(layers)]
    for (layer, unit), factor in units.items():
        rows[layer][unit // group] += 1 - factor
    return rows
