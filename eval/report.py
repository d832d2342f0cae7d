"""What a reviewer reads, as JSON and Markdown; `report_page` draws the same.

The JSON is documented in docs/evaluation.md. It holds what users of lm-eval look for (`results`,
`configs`, `versions`, `n-shot`, `higher_is_better`, `n-samples`), for every metric, and no text
that a model wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.files.escape import markdown
from ..core.files.json_text import finite
from ..core.statistics import Measure
from ..viz.page import framed
from .compare import Comparison, compare_evaluations
from .gate import Gate
from .outcome import Outcome
from .report_folder import write_report
from .report_page import report_page
from .report_tables import (
    CHANGES_NOTE,
    caveats,
    changes_table,
    markdown_table,
    measured_table,
    protocol_table,
    terminal_text,
)
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
        return [(other, compare_evaluations(first, other)) for other in others]

    @property
    def passed(self) -> bool:
        """Whether every gate was met; true where there is none."""
        return all(gate.passed for gate in self.gates)

    @property
    def warnings(self) -> list[str]:
        """What makes numbers worthless: texts that chose an edit, edits that change nothing."""
        said = [
            f"{count} texts of {outcome} chose the edit of {evaluation.model}"
            for evaluation in self.evaluations
            for outcome, count in evaluation.reused().items()
        ]
        first, *others = self.evaluations
        same = [other for other in others if other.model_hash == first.model_hash]
        return said + [f"{other.model} has the weights of {first.model}" for other in same]

    def __str__(self) -> str:
        return terminal_text(self)

    def _repr_html_(self) -> str:
        """Draw the report in a notebook."""
        return framed(report_page(self))

    def save_pretrained(
        self, path: str | Path, overwrite: bool = False, show_text: bool = False
    ) -> None:
        """Write `report.json`, `report.md`, `report.html`, per-unit values, and `junit.xml`.

        Args:
            path: The folder to make.
            overwrite: Whether an existing report may be replaced.
            show_text: Whether to write what the models wrote; it may offend.

        Raises:
            ExciseError: The path is taken or cannot be written.
        """
        write_report(self, path, overwrite, show_text)

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
