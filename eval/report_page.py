"""The report as one HTML file: verdict, tables, dose-response and per-unit scatter."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..viz.chart import Point, Series, line_chart, scatter
from ..viz.page import Section, page
from ..viz.table import table
from ..viz.text import escape
from .compare import Comparison
from .outcome import Outcome
from .report_tables import CHANGES_NOTE, caveats, changes_table, measured_table, protocol_table


if TYPE_CHECKING:
    from .report import Report


EXTREMES = 3
"""How many of the most and least improved prompts are listed."""


def report_page(report: "Report", show_text: bool = False) -> str:
    """Draw a report.

    Args:
        report: What was found.
        show_text: Whether to show what the models wrote; it may offend.
    """
    return page(
        f"Evaluation: {', '.join(e.model for e in report.evaluations)}",
        report_sections(report, show_text),
        subtitle="Every number with its 95 % interval; units and protocols stand at the end.",
    )


def report_sections(report: "Report", show_text: bool = False) -> list[Section]:
    """Draw the parts of a report, for pages that hold more than this."""
    first = report.evaluations[0]
    sections = [_verdict(report)] if report.gates else []
    sections.append(Section("Measured", table(*measured_table(report.evaluations))))
    if len(report.evaluations) > 1:
        sections.append(_dose(report))
    for other, found in report.comparisons:
        heading = f"{other.model} against {first.model}"
        charts = [
            _scatter(comparison, first.model, other.model) for comparison in _headlines(found)
        ]
        body = table(*changes_table(found)) + "".join(charts)
        sections.append(Section(heading, body, note=CHANGES_NOTE))
        sections.extend(_extremes(other.model, c, show_text) for c in _toxic(found))
    sections.extend(_blindness(outcome) for outcome in first.outcomes.values())
    items = "".join(f"<p>{escape(text)}</p>" for text in caveats(report))
    sections.append(Section("What the numbers do not say", items))
    sections.append(
        Section("How it was measured", table(*protocol_table(report.evaluations)), _origin(report))
    )
    return [section for section in sections if section.body]


def _verdict(report: "Report") -> Section:
    rows = [
        [gate.model, check.name, check.status, check.detail]
        for gate in report.gates
        for check in gate.checks
    ]
    verdicts = [f"{gate.model} {'met' if gate.passed else 'not met'}" for gate in report.gates]
    return Section(
        f"Gate: {', '.join(verdicts)}",
        table(["model", "check", "status", "why"], rows),
        note="A check passes where the data show that the rule is kept. What they do not show "
        "either way is inconclusive, and the gate is not met.",
    )


def _dose(report: "Report") -> Section:
    """Draw each headline over the models in the order given."""
    names = [evaluation.model for evaluation in report.evaluations]
    ticks = {float(at): name for at, name in enumerate(names)}
    charts = []
    for name, outcome in report.evaluations[0].outcomes.items():
        statistic = outcome.statistics[0]
        points = []
        for at, evaluation in enumerate(report.evaluations):
            measure = evaluation[name].headline
            low, high = map(_drawable, measure.ci)
            points.append(Point(at, _drawable(measure.value), low, high, label=evaluation.model))
        values = [y for p in points for y in (p.y, *(p.interval or ())) if math.isfinite(y)]
        charts.append(
            line_chart(
                [Series(name, points)],
                title=f"{name}: {statistic.name}",
                x_label="model",
                y_label=statistic.name.replace("_", " "),
                x_ticks=ticks,
                log_y=bool(values) and 0 < 30 * min(values) < max(values),
            )
        )
    return Section("Dose and response", "".join(charts), note="In the order the models were given.")


def _drawable(value: float) -> float:
    """Return what a chart leaves out and says so, where a number is too large for one."""
    return value if abs(value) < 1e300 else math.copysign(math.inf, value)


def _headlines(found: Sequence[Comparison]) -> list[Comparison]:
    return [
        c for c in found if c.statistic == c.before.statistics[0] and not c.statistic.proportion
    ]


def _scatter(comparison: Comparison, before: str, after: str) -> str:
    statistic = comparison.statistic
    values = [o.per_unit(statistic) for o in (comparison.before, comparison.after)]
    names = ("better after", "worse after")
    above, below = names if statistic.better == "higher" else names[::-1]
    points = [
        Point(_drawable(x), _drawable(y), label=unit)
        for x, y, unit in zip(*(v.tolist() for v in values), comparison.before.units, strict=True)
    ]
    return scatter(
        points, title=f"{comparison.outcome}: {statistic.name} of each unit",
        x_label=before, y_label=after, above=above, below=below,
    )  # fmt: skip


def _toxic(found: Sequence[Comparison]) -> list[Comparison]:
    return [c for c in _headlines(found) if c.before.texts]


def _extremes(model: str, comparison: Comparison, show_text: bool) -> Section:
    """List the prompts that changed most, in both directions."""
    statistic = comparison.statistic
    before, after = (o.per_unit(statistic) for o in (comparison.before, comparison.after))
    order = sorted(range(len(before)), key=lambda i: after[i] - before[i])
    chosen = list(dict.fromkeys([*order[:EXTREMES], *order[-EXTREMES:]]))
    rows = []
    for i in chosen:
        texts = [_shown(outcome, i, show_text) for outcome in (comparison.before, comparison.after)]
        rows.append([comparison.before.units[i], float(before[i]), float(after[i]), *texts])
    kind = next(iter(comparison.before.texts))
    note = "" if show_text else "Texts are left out, as they may offend: --show-text has them."
    headers = ["prompt", "before", "after", f"{kind}, before", f"{kind}, after"]
    return Section(
        f"{comparison.outcome} of {model}: prompts that changed most", table(headers, rows), note
    )


def _shown(outcome: Outcome, index: int, show_text: bool) -> str:
    (texts,) = outcome.texts.values()
    return texts[index] if show_text else f"[{len(texts[index].split())} words]"


def _blindness(outcome: Outcome) -> Section:
    if "probe" not in outcome.facts:
        return Section("", "")
    rows = []
    for name, found in outcome.facts["probe"]["categories"].items():
        low, high = found["ci"]
        share = f"{found['share']:.2f} [{low:.2f}, {high:.2f}]"
        right = "yes" if found["flag_is_right"] else "no"
        rows.append([name, f"{found['flagged']} of {found['n']}", share, right])
    headers = ["probe sentences", "flagged", "share", "should be flagged"]
    return Section(
        f"What {outcome.facts['scorer']} sees", table(headers, rows), str(outcome.facts["limits"])
    )


def _origin(report: "Report") -> str:
    lines = [f"{e.model}: weights {e.model_hash[:16]}" for e in report.evaluations]
    environment = report.evaluations[0].environment
    packages = ", ".join(f"{k} {v}" for k, v in environment.get("versions", {}).items())
    return "\n".join([*lines, packages, str(environment.get("date", ""))])
