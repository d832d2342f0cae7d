"""Which contrast finds a behaviour that was planted, and removes it?

    python benchmarks/planted_behaviours.py
    python benchmarks/planted_behaviours.py --seeds 10 --families opt --component heads

Per family and contrast: means over the seeds. As many units are cut as were planted, and the
goals are counted: recall at least .9 where precision is at least .8, behaviour removed at least
90 % on held-out triggers, perplexity at most 1 % higher. "ahead" counts seeds on which LRP's AUROC
is at least as high.
"""

import argparse
from statistics import fmean

from excise.correction.contrast import CONTRASTS, contrast
from excise.correction.edit import Edit
from excise.correction.testbed import Grade, grade, outcome, planted_behaviour


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
    heads = "family,contrast,recall@k,recall at precision .8,AUROC,removed,perplexity,goals"
    print(f"| {' | '.join([*heads.split(','), 'LRP ahead'])} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for family in given.families.split(","):
        grades: dict[str, list[Grade]] = {name: [] for name in names}
        ideal = []
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            planted = planted_behaviour(family, seed, given.component)
            ideal.append(outcome(Edit(**{given.component: dict.fromkeys(planted.truth, 0.0)}),
                                 planted))  # fmt: skip
            for name in names:
                found = contrast(planted.model, planted.behaviour, name, given.component,
                                 seed=given.seed_of_relevance, random_seed=seed)  # fmt: skip
                grades[name].append(grade(found, planted))
        removed, ratio = (fmean(values) for values in zip(*ideal, strict=True))
        print(f"| {family} | the planted ones | 1 | 1 | 1 | {removed:.0%} | {ratio - 1:+.1%} | | |")
        for name, found in grades.items():
            met = sum(g.recall_at_80 >= 0.9 and g.removed >= 0.9 and g.perplexity_ratio <= 1.01
                      for g in found)  # fmt: skip
            ahead = [a.auroc >= b.auroc for a, b in zip(grades.get("lrp", []), found, strict=False)]
            print(
                f"| {family} | {name} | {fmean(g.recall for g in found):.2f} "
                f"| {fmean(g.recall_at_80 for g in found):.2f} "
                f"| {fmean(g.auroc for g in found):.3f} | {fmean(g.removed for g in found):.0%} "
                f"| {fmean(g.perplexity_ratio for g in found) - 1:+.1%} "
                f"| {met} of {len(found)} | {sum(ahead)} of {len(ahead)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
