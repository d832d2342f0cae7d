"""A report as a folder: JSON, Markdown, a page, per-unit values, and JUnit's XML of the gates."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files.artefact import SCHEMA, versions
from ..core.files.json_text import finite, json_text
from ..core.files.output import whole_folder
from ..viz.page import write_page
from .gate import junit
from .report_page import report_page
from .run import Evaluation


if TYPE_CHECKING:
    from .report import Report


def write_report(report: "Report", path: str | Path, overwrite: bool, show_text: bool) -> None:
    """Write a report; see `Report.save_pretrained`.

    Raises:
        ExciseError: The path is taken or cannot be written.
    """
    with whole_folder(path, overwrite, "evaluation") as folder:
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


def _write_units(evaluation: Evaluation, folder: Path, show_text: bool) -> None:
    """Write per-unit values, a JSONL file per outcome, the model's name in each row."""
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
