"""The tables of a report, shared by its Markdown, its page and the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..core.files.columns import aligned
from ..core.files.escape import markdown
from ..core.statistics import short
from .compare import Comparison
from .run import Evaluation


if TYPE_CHECKING:
    from .report import Report

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""

CHANGES_NOTE = (
    "Intervals are 95 %, from units resampled in pairs. The sign test counts units that got better "
    "and worse; the permutation test swaps the models' values within units. The last column is the "
    "smallest true difference that 80 % of such comparisons would find: smaller ones may be there."
)


def measured_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per statistic, one column per model."""
    rows = []
    for name in dict.fromkeys(name for e in evaluations for name in e.outcomes):
        having = [e.outcomes[name] for e in evaluations if name in e.outcomes]
        for statistic in having[0].statistics:
            cells = [
                str(e.outcomes[name].measures[statistic.name]) if name in e.outcomes else "-"
                for e in evaluations
            ]
            rows.append([f"{name} {statistic.name}", *cells])
    return ["", *(e.model for e in evaluations)], rows


def changes_table(found: Sequence[Comparison]) -> Table:
    """One row per statistic: difference, relative change, tests, detectable effect."""
    headers = ["", "difference", "relative", "better / worse", "sign test p", "permutation p",
               "detectable"]  # fmt: skip
    rows = []
    for comparison in found:
        paired, relative = comparison.paired, comparison.relative
        low, high = relative.ci
        rows.append(
            [
                f"{comparison.outcome} {comparison.statistic.name}",
                str(comparison.difference),
                f"{100 * relative.value:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]",
                f"{paired.wins} / {paired.losses}",
                short(paired.sign_p),
                short(paired.permutation_p),
                short(paired.detectable),
            ]
        )
    return headers, rows


def protocol_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per outcome: how, on how many units, on which text."""
    rows = [
        [name, outcome.protocol, str(outcome.headline.n), str(outcome.facts.get("text", ""))]
        for name, outcome in evaluations[0].outcomes.items()
    ]
    return ["", "protocol", "units", "text"], rows


def caveats(report: "Report") -> list[str]:
    """Say what a reader could believe wrongly."""
    said = [
        "An interval says how a number would vary with other units of this kind, not with other "
        "kinds of text, prompts or judges."
    ]
    outcomes = report.evaluations[0].outcomes
    if "perplexity" in outcomes and outcomes["perplexity"].protocol.startswith(
        ("window", "stride")
    ):
        said.append(
            "Windows of one text are neighbours and no independent draws, so the interval of a "
            "single perplexity is too narrow where topics run long; differences on the same "
            "windows suffer less. Under --protocol document the units are documents."
        )
    for outcome in outcomes.values():
        if "limits" in outcome.facts:
            said.append(f"What the judge cannot see: {outcome.facts['limits']}")
    numerics = [
        tuple(e.environment.get(key) for key in ("dtype", "device")) for e in report.evaluations
    ]
    if len(set(numerics)) > 1:
        pairs = zip(report.evaluations, numerics, strict=True)
        each = ", ".join(f"{e.model} {dtype} on {device}" for e, (dtype, device) in pairs)
        said.append(f"The models were measured in different precision or place ({each}).")
    if len(report.gates) > 1:
        said.append(
            "Several edited models were decided on, each at the policy's confidence: the best of "
            "many looks better than it is. Measure the one that is chosen again, on other units."
        )
    for evaluation in report.evaluations:
        for name, count in evaluation.reused().items():
            said.append(
                f"{count} of {len(evaluation[name].known_by)} prompts or lines of {name} chose the "
                f"edit of {evaluation.model}: its numbers there prove nothing."
            )
    return said


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown, whatever is in its cells."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(map(markdown, line)) + " |" for line in lines)


def terminal_text(report: "Report") -> str:
    """Write a report for a terminal: what was measured, what changed, and each gate."""
    first = report.evaluations[0]
    parts = [aligned(*measured_table(report.evaluations))]
    for name, outcome in first.outcomes.items():
        parts.append(f"{name}: {outcome.protocol} ({outcome.headline.n} units)")
    for other, found in report.comparisons:
        parts.append(f"\n{other.model} against {first.model}")
        parts.append(aligned(*changes_table(found)))
    parts += [f"note: {text}" for text in caveats(report)[1:]]
    for gate in report.gates:
        parts.append(f"\ngate {'met' if gate.passed else 'NOT met'}: {gate.model}")
        parts += [str(check) for check in gate.checks]
    return "\n".join(parts)
