"""Do the methods find circuits that are known? Grades on models with planted circuits.

    OMP_NUM_THREADS=1 python benchmarks/planted_circuits.py -o planted.json

AUROC of heads, MLPs and edges, and recall of neurons at their true number, by the size of the mean
score; means over seeds with the range, for each family. Exact patching is graded, too.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from excise.circuits.attribution import attribute
from excise.circuits.graph import Graph
from excise.circuits.methods import CIRCUIT_METHODS
from excise.circuits.pairs import Pairs
from excise.circuits.patching import expand
from excise.circuits.testbed.grading import Grade, grade
from excise.circuits.testbed.planted import CIRCUITS, planted
from excise.core.families import ModelView


def graded(model: Any, bed: Any, pairs: Pairs, method: str) -> Grade:
    """Score a planted model with one method and grade the means."""
    found = attribute(model, pairs, method, neurons=True, edges=True, batch_size=16)
    means = {key: t.mean(0) for key, t in vars(found).items() if t is not None}
    means["edges"] = expand(Graph.of(ModelView.of(model)), means["edges"])
    return grade(bed, **means)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    methods = given.methods.split(",") if given.methods else list(CIRCUIT_METHODS)
    rows = json.loads(given.output.read_text()) if given.output.exists() else {}
    for circuit in CIRCUITS:
        for family in ("llama", "opt"):
            for seed in range(given.seeds):
                bed = planted(circuit, family, seed, given.prompts)
                pairs = Pairs(tuple(bed.clean), tuple(bed.counterfactual))
                for method in methods:
                    key = f"{method}/{circuit}/{family}/{seed}"
                    if key not in rows:
                        found = graded(bed.model, bed, pairs, method)
                        rows[key] = {
                            kind: [marks.auroc, marks.recall]
                            for kind, marks in vars(found).items() if marks is not None
                        }  # fmt: skip
                given.output.write_text(json.dumps(rows))
            print(f"{circuit}, {family}: {given.seeds} seeds", flush=True)
    print(table(rows, methods))


COLUMNS = (("heads", 0), ("MLPs", 0), ("edges", 0), ("edges", 1), ("neurons", 1), ("backups", 0))


def table(rows: dict[str, Any], methods: list[str]) -> str:
    """Render means and ranges over seeds and circuits."""
    lines = ["| method | family | heads AUROC | MLPs AUROC | edges AUROC | edges recall | "
             "neurons recall | backup heads AUROC |", "|" + "---|" * 8]  # fmt: skip
    for method in methods:
        for family in ("llama", "opt"):
            cells = []
            for kind, at in COLUMNS:
                values = [
                    row[kind.lower()][at] for key, row in rows.items()
                    if key.startswith(f"{method}/") and f"/{family}/" in key and kind.lower() in row
                ]  # fmt: skip
                cells.append(
                    f"{fmean(values):.3f} ({min(values):.2f} to {max(values):.2f})"
                    if values
                    else ""
                )
            lines.append(f"| `{method}` | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
