"""Tables and curves of excise prune: several recipes, several sparsities, one measure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files.json_text import json_text
from .options import aligned
from .terminal import say


if TYPE_CHECKING:
    from ..core.data import Sample
    from ..core.loading import Loaded
    from ..eval.outcome import Metric
    from ..eval.run import Evaluation
    from ..prune.compare import Trial
    from ..prune.recipe import Recipe

HEADERS = ("recipe", "sparsity", "perplexity", "times dense", "seconds", "MiB more")


@dataclass(frozen=True)
class Table:
    """The dense model and every trial, all measured on the same text."""

    dense: "Evaluation"
    trials: "Sequence[Trial[Evaluation]]"
    calibration: str

    def rows(self) -> list[list[str]]:
        """Return the cells of a table with `HEADERS`."""
        rows = [["dense", "0", str(self.dense["perplexity"].headline), "1", "", ""]]
        for trial in self.trials:
            low, high = (1 + end for end in self._relative(trial).ci)
            times = f"{1 + self._relative(trial).value:.3f} [{low:.3f}, {high:.3f}]"
            rows.append(
                [trial.name, f"{trial.sparsity:.4f}", str(trial.found["perplexity"].headline),
                 times, f"{trial.seconds:.0f}", f"{trial.peak / 2**20:.0f}"]
            )  # fmt: skip
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        from ..core.files.json_text import finite

        outcome = self.dense["perplexity"]

        def number(measure: Any) -> dict[str, Any]:
            return finite({"value": measure.value, "ci": list(measure.ci), "n": measure.n})

        return {
            "dense": number(outcome.headline),
            "protocol": outcome.protocol,
            "calibration": self.calibration,
            "trials": [
                {
                    "name": trial.name,
                    "recipe": trial.recipe.to_json(),
                    "sparsity": trial.sparsity,
                    "perplexity": number(trial.found["perplexity"].headline),
                    "relative": number(self._relative(trial)),
                    "seconds": round(trial.seconds, 6),
                    "peak": trial.peak,
                }
                for trial in self.trials
            ],
        }

    def page(self) -> str:
        """Draw the table, and curves where there are several sparsities."""
        from ..viz.chart import Point, Series, line_chart
        from ..viz.page import Section, page
        from ..viz.table import table

        lines: dict[str, list[Point]] = {}
        for trial in self.trials:
            found = trial.found["perplexity"].headline
            lines.setdefault(trial.name, []).append(Point(trial.sparsity, found.value, *found.ci))
        protocol = self.dense["perplexity"].protocol
        how = (
            f"Perplexity: {protocol}. Calibration, the same for all: {self.calibration}. Intervals "
            "are 95 %; times dense is paired window by window. Memory is what pruning held above "
            "what the process held before."
        )
        sections = [Section("Table", table(HEADERS, self.rows()), how)]
        if any(len(points) > 1 for points in lines.values()):
            drawn = list(lines.items())[:8]
            note = f"The first {len(drawn)} of {len(lines)}." if len(lines) > len(drawn) else ""
            chart = line_chart(
                [Series(name, points) for name, points in drawn],
                title="Perplexity by sparsity", x_label="share of weights that is gone",
                y_label="perplexity (log scale)", log_y=True, interval="95 % bootstrap interval",
            )  # fmt: skip
            sections.append(Section("Curves", chart, note))
        return page(f"Pruning {self.dense.model}", sections)

    def _relative(self, trial: "Trial[Evaluation]") -> Any:
        from ..eval.compare import compare_evaluations

        return compare_evaluations(self.dense, trial.found)[0].relative


def measure_all(
    loaded: "Loaded",
    samples: "Sequence[Sample]",
    recipes: "dict[str, Recipe]",
    sparsities: Sequence[float],
    metric: "Metric",
    calibration: str,
    **options: Any,
) -> Table:
    """Prune by every recipe to every sparsity, measure each, and say so on the way."""
    from ..eval.run import default_cache, evaluate
    from ..prune.compare import compare_recipes

    def measured() -> "Evaluation":
        return evaluate(loaded, [metric], cache=default_cache(), progress=options["progress"])

    todo = {
        (name, sparsity): replace(recipe, sparsity=sparsity)
        for name, recipe in recipes.items()
        for sparsity in sparsities
    }
    dense, trials = measured(), []
    say(f"dense: perplexity {dense['perplexity'].headline}", err=True)
    keys = {f"{name}-{sparsity}": name for name, sparsity in todo}
    named = dict(zip(keys, todo.values(), strict=True))
    for trial in compare_recipes(loaded.model, samples, named, measured, **options):
        found = trial.found["perplexity"].headline
        say(f"{trial.name}: perplexity {found}, {trial.seconds:.0f} s", err=True)
        trials.append(replace(trial, name=keys[trial.name]))
    return Table(dense, trials, calibration)


def write_table(found: Table, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Print the table, and write it to a folder with a page."""
    from ..core.files.artefact import SCHEMA, versions
    from ..core.files.output import whole_folder
    from ..viz.page import write_page

    if output is not None:
        with whole_folder(output, overwrite, "pruning-table") as folder:
            head = {"schema": SCHEMA, "kind": "pruning-table", "versions": versions()}
            content = json_text({**head, **found.to_json()}, indent=2)
            (folder / "config.json").write_text(content + "\n")
            write_page(folder / "table.html", found.page())
    if as_json:
        say(json_text(found.to_json()))
        return
    say(aligned(HEADERS, found.rows()))
    if output is not None:
        say(f"written to {output}; look at {output / 'table.html'}")
