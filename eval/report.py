"""What a reviewer reads, as JSON and Markdown; `report_page` draws the same.

The JSON is documented in docs/evaluation.md. It holds what users of lm-eval look for (`results`,
`configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`), for every metric, and no text
that a model wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..core.files.escape import markdown
from ..core.files.json_text import finite
from ..core.statistics import Measure, short
from .compare import Comparison, compare
from .gate import Gate
from .outcome import Outcome
from .run import Evaluation


SCHEMA = 1
LM_EVAL_KEYS = ("configs", "versions", "n-shot", "higher_is_better", "n-samples")


@dataclass(frozen=True)
class Report:
    """Evaluations of one or more models, the first of them the baseline."""

    evaluations: tuple[Evaluation, ...]
    gates: tuple[Gate, ...] = ()

    @cached_property
    def comparisons(self) -> list[tuple[Evaluation, list[Comparison]]]:
        """Every other model against the first."""
        first, *others = self.evaluations
        return [(other, compare(first, other)) for other in others]

    @property
    def passed(self) -> bool:
        """Whether every gate was met; true where there is none."""
        return all(gate.passed for gate in self.gates)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; the first model's record stands at the top level as well."""
        records = [record(evaluation) for evaluation in self.evaluations]
        found = {
            "schema": SCHEMA,
            "kind": "evaluation",
            **records[0],
            "models": records,
            "comparisons": [
                {"before": self.evaluations[0].model, "after": other.model, **_changes(found)}
                for other, found in self.comparisons
            ],
            "gates": [
                {
                    "model": gate.model,
                    "passed": gate.passed,
                    "checks": list(map(asdict, gate.checks)),
                }
                for gate in self.gates
            ],
        }
        return finite(found)

    def to_markdown(self) -> str:
        """Return a report for humans."""
        names = ", ".join(markdown(e.model) for e in self.evaluations)
        return "\n\n".join([f"# Evaluation of {names}", *self.markdown_parts()]) + "\n"

    def markdown_parts(self) -> list[str]:
        """Return what stands below the title, for reports that hold more than this."""
        names = {e.model: markdown(e.model) for e in self.evaluations}
        first, *_ = self.evaluations
        parts = []
        for gate in self.gates:
            verdict = "met" if gate.passed else "NOT met"
            rows = [[c.name, c.status, c.detail] for c in gate.checks]
            parts += [
                f"## Gate {verdict}: {markdown(gate.model)}",
                markdown_table(["check", "", "why"], rows),
            ]
        parts += ["## Measured", markdown_table(*measured_table(self.evaluations))]
        for other, found in self.comparisons:
            parts += [f"## {names[other.model]} against {names[first.model]}"]
            parts += [markdown_table(*changes_table(found)), CHANGES_NOTE]
        parts += [
            "## What the numbers do not say",
            *(f"- {markdown(text)}" for text in caveats(self)),
        ]
        return [
            *parts,
            "## How it was measured",
            markdown_table(*protocol_table(self.evaluations)),
        ]


def record(evaluation: Evaluation) -> dict[str, Any]:
    """Return what was found on one model as JSON values."""
    found: dict[str, Any] = {
        "model": evaluation.model,
        "model_hash": evaluation.model_hash,
        "tokenizer_hash": evaluation.tokenizer_hash,
        "environment": dict(evaluation.environment),
        "results": {},
        **{key: {} for key in LM_EVAL_KEYS},
    }
    for name, outcome in evaluation.outcomes.items():
        group, _, judge = name.partition("@")  # whose name may have dots, as a file's has
        group, _, task = group.partition(".")
        if task:
            found.setdefault(group, {})[task] = outcome_record(outcome)
        elif judge:
            found[group].setdefault("judges", {})[judge] = outcome_record(outcome)
        else:
            found[group] = outcome_record(outcome)
        _add_lm_eval(found, name if task in found["results"] else task or name, outcome)
    return found


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """Return the headline's `value`, `ci`, `n`, `protocol`, and every statistic by its name."""
    every = {name: _json(measure) for name, measure in outcome.measures.items()}
    facts = {key: value for key, value in outcome.facts.items() if key != "lm_eval"}
    return {"statistic": outcome.statistics[0].name, **_json(outcome.headline), **every, **facts}


def _json(measure: Measure) -> dict[str, Any]:
    return {**asdict(measure), "ci": list(measure.ci)}


def _add_lm_eval(found: dict[str, Any], task: str, outcome: Outcome) -> None:
    """Add an outcome in lm-eval's layout: its own for its tasks, the same for ours."""
    theirs: Mapping[str, Any] = outcome.facts.get("lm_eval") or {}
    ours: dict[str, Any] = {"alias": task}
    for name, measure in outcome.measures.items():
        ours[f"{name},none"] = measure.value
        ours[f"{name}_stderr,none"] = (measure.ci[1] - measure.ci[0]) / (2 * 1.96)
    found["results"][task] = theirs.get("results") or ours
    n = outcome.headline.n
    mine = {
        "configs": {"task": task, "protocol": outcome.protocol},
        "versions": SCHEMA,
        "n-shot": 0,
        "higher_is_better": {s.name: s.better == "higher" for s in outcome.statistics},
        "n-samples": {"original": n, "effective": n},
    }
    for key in LM_EVAL_KEYS:
        found[key][task] = theirs.get(key, mine[key])


def _changes(found: Sequence[Comparison]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for comparison in found:
        paired = comparison.paired
        changes.setdefault(comparison.outcome, {})[comparison.statistic.name] = {
            "difference": _json(comparison.difference),
            "relative": _json(comparison.relative),
            "better": paired.wins,
            "worse": paired.losses,
            "sign_test_p": paired.sign_p,
            "permutation_p": paired.permutation_p,
            "minimum_detectable_effect": paired.detectable,
        }
    return {"changes": changes}


# --- tables, shared by Markdown, HTML and the terminal ---

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


def caveats(report: Report) -> list[str]:
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
