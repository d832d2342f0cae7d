"""Which scores give the smallest faithful circuit of a real model?

    python benchmarks/circuit_table.py -o nodes.json
    python benchmarks/circuit_table.py --level edges --methods relp-ig,eap-ig,random -o edges.json
    python benchmarks/circuit_table.py --level weights --ablation zero -o weights.json

Scores are taken on the training prompts of a task, sizes are chosen on validation prompts, and all
that is printed is measured on test prompts, which share no names, places or templates with either.
Rows that are in the output already are not measured again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from excise.circuits.ablation import Ablator
from excise.circuits.attribution import attribute
from excise.circuits.discovery import by_faithfulness, refine
from excise.circuits.faithfulness import FRACTIONS, Trial, sizes
from excise.circuits.find import as_mean, wanted
from excise.circuits.levels import Ranking, get_level
from excise.circuits.methods import CIRCUIT_METHODS
from excise.circuits.pairs import encode_pairs
from excise.circuits.weights import WEIGHT_METHODS, weight_scores
from excise.core.loading import load_model
from excise.tasks.registry import task_prompts


TARGET = 0.9
STEPS = {
    "nodes": [10, 15, 20, 25, 30, 35, 40, 50, 60, 80, 100, 150],
    "edges": [100, 200, 400, 800, 1200, 2000, 4000, 10000],
    "neurons": [100, 300, 1000, 3000, 10000, 20000, 30000],
    "weights": [10**k * m for k in (4, 5, 6) for m in (1, 2, 5)] + [10**7, 2 * 10**7, 5 * 10**7],
}


def measured(test: Trial, ranking: Ranking, steps: list[int]) -> list[dict[str, Any]]:
    """Return faithfulness at each size, on test prompts."""
    rows = []
    for k in steps:
        chosen = test.tidy(ranking.top(k))
        found = test.faithfulness(test.run(chosen))
        rows.append({"k": k, "size": int(chosen.sum()), "f": found.value, "ci": list(found.ci)})
    return rows


def row_of(trials: dict[str, Trial], mean: Any, rank: str, given: Any) -> dict[str, Any]:
    """Measure one method's scores in one order."""
    test, ranking = trials["test"], Ranking(mean, rank)
    row: dict[str, Any] = {"curve": measured(test, ranking, STEPS[given.level])}
    outcomes = [test.run(test.tidy(ranking.top(k))) for k in sizes(len(mean), FRACTIONS)]
    areas = test.areas(FRACTIONS, outcomes)
    for name in ("cpr", "cmd"):
        area = getattr(areas, name)
        row[name] = [area.value, *area.ci]
    chosen = by_faithfulness(trials["validation"], ranking, TARGET)
    circuits = {"chosen": chosen}
    if given.refine and rank == "signed":
        circuits["refined"] = refine(trials["validation"], chosen, TARGET)
    for name, circuit in circuits.items():
        outcome = test.run(circuit)
        found, complement = test.faithfulness(outcome), test.faithfulness(test.run(~circuit))
        row[name] = {
            "size": int(circuit.sum()), "f": found.value, "ci": list(found.ci),
            "accuracy": test.accuracy(outcome).value, "completeness": complement.value,
        }  # fmt: skip
    return row


def main() -> None:
    """Measure what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--level", default="nodes")
    parser.add_argument("--methods", help="comma-separated; default: all that are cheap")
    parser.add_argument("--ranks", default="signed,abs")
    parser.add_argument("--ablation", default="resample")
    parser.add_argument("--train", type=int, default=64)
    parser.add_argument("--test", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    loaded, level = load_model(given.model), get_level(given.level)
    model = loaded.model.float()
    parts = {
        split: encode_pairs(
            loaded.tokenizer, task_prompts(given.task, loaded.tokenizer, n, 0, split)
        )
        for split, n in (("train", given.train), ("validation", given.test), ("test", given.test))
    }
    trials = {
        split: Trial(Ablator(model, parts[split], given.ablation, parts["train"], given.batch_size),
                     level)
        for split in ("validation", "test")
    }  # fmt: skip
    rows = json.loads(given.output.read_text()) if given.output.exists() else {}
    cheap = WEIGHT_METHODS if given.level == "weights" else [
        name for name, method in CIRCUIT_METHODS.items() if not method.exact
    ]  # fmt: skip
    for name in given.methods.split(",") if given.methods else cheap:
        todo = [rank for rank in given.ranks.split(",") if f"{name}/{rank}" not in rows]
        if not todo:
            continue
        started = time.process_time()
        if given.level == "weights":
            mean = weight_scores(model, parts["train"], name, given.batch_size)
        else:
            options = wanted(level, CIRCUIT_METHODS[name])
            found = attribute(model, parts["train"], name, **options, batch_size=8)
            mean = as_mean(model, found, level)
        seconds = time.process_time() - started
        for rank in todo:
            row = row_of(trials, mean, rank, given)
            rows[f"{name}/{rank}"] = {**row, "cpu_seconds": seconds}
            given.output.write_text(json.dumps(rows))
            print(line(f"{name}/{rank}", rows[f"{name}/{rank}"]), flush=True)
    print(table(rows))


def line(name: str, row: dict[str, Any]) -> str:
    """Render one row as Markdown."""
    reached = next((point["size"] for point in row["curve"] if point["f"] >= TARGET), None)
    cells = [name, f"{reached or '-'}"]
    for key in ("chosen", "refined"):
        found = row.get(key)
        cells.append("" if found is None else
                     f"{found['size']}: {found['f']:.2f} [{found['ci'][0]:.2f}, "
                     f"{found['ci'][1]:.2f}], complement {found['completeness']:.2f}")  # fmt: skip
    for key in ("cpr", "cmd"):
        cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*row[key]))
    return f"| {' | '.join(cells)} | {row['cpu_seconds']:.0f} |"


def table(rows: dict[str, Any]) -> str:
    """Render all rows."""
    head = (f"| scores / rank | first measured size with f >= {TARGET} on test | chosen on "
            "validation: f on test | refined | CPR | CMD | CPU-s |")  # fmt: skip
    return "\n".join([head, "|" + "---|" * 7, *(line(name, row) for name, row in rows.items())])


if __name__ == "__main__":
    main()
