"""Which contrast finds a behaviour that was planted, and removes it?

    python benchmarks/planted_behaviours.py
    python benchmarks/planted_behaviours.py --seeds 10 --families opt --component heads

Per family and contrast: means over the seeds, of the recall with its 95 % t interval. As many units
are cut as were planted, and the goals are counted: recall at least .9 where precision is at least
.8, behaviour removed at least 90 % on held-out triggers, perplexity at most 1 % higher. "TOST"
counts seeds on which perplexity is shown to change by less than 1 % either way; the planted
behaviour itself costs the model some of it, so less is what removal should give. "behind LRP"
counts seeds on which the AUROC is lower than LRP's, and those on which it is higher.
"""

import argparse
from collections.abc import Sequence
from statistics import fmean, stdev

from excise.correction.ranking.contrast import CONTRASTS, contrast
from excise.correction.testbed.planted import Grade, grade, outcome, planted_behaviour
from excise.edits.edit import Edit
from scipy.stats import t as student


HEADERS = ("family", "contrast", "recall@k", "recall at precision .8", "AUROC", "removed",
           "perplexity", "goals", "TOST", "behind LRP, ahead")  # fmt: skip


def with_interval(values: Sequence[float]) -> str:
    """Return the mean over seeds with its interval."""
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    half = student.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} [{max(mean - half, 0):.2f}, {min(mean + half, 1):.2f}]"


def row(family: str, name: str, found: Sequence[Grade], ours: Sequence[Grade]) -> str:
    """Return a contrast's line of the table."""
    done = [g.outcome for g in found]
    met = sum(g.recall_at_80 >= 0.9 and o.removed >= 0.9 and o.rise <= 0.01
              for g, o in zip(found, done, strict=True))  # fmt: skip
    pairs = list(zip(found, ours, strict=False))
    behind = sum(g.auroc < o.auroc for g, o in pairs)
    ahead = sum(g.auroc > o.auroc for g, o in pairs)
    cells = (
        family, name, with_interval([g.recall for g in found]),
        f"{fmean(g.recall_at_80 for g in found):.2f}", f"{fmean(g.auroc for g in found):.3f}",
        f"{fmean(o.removed for o in done):.0%}", f"{fmean(o.rise for o in done):+.1%}",
        f"{met} of {len(found)}", f"{sum(o.equivalent() for o in done)}", f"{behind}, {ahead}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Plant, find, grade."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--families", default="llama,opt")
    parser.add_argument("--component", default="neurons", choices=("neurons", "heads"))
    parser.add_argument("--contrasts", help="Comma-separated; all by default.")
    seeds = ("logit", "logprob", "both")
    parser.add_argument("--seed-of-relevance", default="logit", choices=seeds)
    given = parser.parse_args()
    names = given.contrasts.split(",") if given.contrasts else list(CONTRASTS)
    print(f"| {' | '.join(HEADERS)} |\n|{'---|' * len(HEADERS)}")
    for family in given.families.split(","):
        grades: dict[str, list[Grade]] = {name: [] for name in names}
        ideal = []
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            planted = planted_behaviour(family, seed, given.component)
            truth = Edit.of_units(given.component, dict.fromkeys(planted.truth, 0.0))
            ideal.append(outcome(truth, planted))
            for name in names:
                found = contrast(planted.model, planted.behaviour, name, given.component,
                                 seed=given.seed_of_relevance, random_seed=seed)  # fmt: skip
                grades[name].append(grade(found, planted))
        removed, rise = fmean(o.removed for o in ideal), fmean(o.rise for o in ideal)
        equivalent = sum(o.equivalent() for o in ideal)
        print(f"| {family} | the planted ones | 1 | 1 | 1 | {removed:.0%} | {rise:+.1%} | "
              f"| {equivalent} | |")  # fmt: skip
        for name, found in grades.items():
            print(row(family, name, found, grades.get("lrp", [])), flush=True)


if __name__ == "__main__":
    main()
