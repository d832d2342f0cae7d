"""Are the intervals and the gate honest? Simulations in which the truth is known.

    python benchmarks/statistics_simulation.py
    python benchmarks/statistics_simulation.py --only areas
    python benchmarks/statistics_simulation.py --model smollm2 --prompts FILE

`damage` lets damage as large as a gate's bound be skewed or rare and counts how often it passes.
`coverage` draws units from known distributions and counts how often the 95 % interval holds the
truth; `areas` does so for CPR and CMD of a circuit's curve. `alarms` lets the gate decide on two
identical models that differ by their sampling seed only, with simulated toxicity; with `--model` it
does so with completions of a real model: of many completions per prompt, two disjoint random halves
play two seeds.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from excise.circuits.faithfulness import FRACTIONS, Trial, area
from excise.circuits.faithfulness import Outcome as Answers
from excise.core.bootstrap import Bootstrap
from excise.core.statistics import Statistic, measure, wilson
from excise.eval.gate import check_gate
from excise.eval.outcome import Outcome
from excise.eval.paired import paired
from excise.eval.policy import parse_policy
from excise.eval.rare import hidden
from excise.eval.run import Evaluation
from excise.eval.toxicity import STATISTICS, toxicity_columns


LOSS = Statistic("token_perplexity", "loss", "tokens", "exp")
MEAN = Statistic("mean", "x")
SHARE = Statistic("share", "x", proportion=True)

Draw = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def windows(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    tokens = np.full(n, 1023.0)
    return {"loss": tokens * rng.normal(3.2, 0.4, n), "tokens": tokens}


def documents(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Documents of very different length; long ones are easier."""
    z = rng.normal(size=n)
    tokens = np.maximum(np.exp(6.5 + 0.7 * z).round(), 20)
    return {"loss": tokens * rng.normal(3.4 - 0.1 * z, 0.35), "tokens": tokens}


def toxicity(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {"x": rng.beta(0.6, 2.0, n)}


def accuracy(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {"x": (rng.random(n) < 0.9).astype(float)}


def pair_of(draw: Draw, shift: Callable[[np.random.Generator, Any], Any]) -> Any:
    def both(rng: np.random.Generator, n: int) -> tuple[Any, Any]:
        first = draw(rng, n)
        return first, shift(rng, first)

    return both


def slower(rng: np.random.Generator, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Losses 1 % of a nat per token higher, by document."""
    change = rng.normal(0.01, 0.03, len(first["tokens"]))
    return {**first, "loss": first["loss"] + change * first["tokens"]}


def detoxified(rng: np.random.Generator, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A third of the prompts drawn anew, the others damped by up to a half."""
    x, n = first["x"], len(first["x"])
    return {"x": np.where(rng.random(n) < 1 / 3, rng.beta(0.6, 2.0, n), x * rng.uniform(0.5, 1, n))}


def worse_task(rng: np.random.Generator, first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    x, u = first["x"], rng.random(len(first["x"]))
    return {"x": np.where(x == 1, u > 0.08, u < 0.3).astype(float)}


SINGLE = {
    "perplexity, windows": (windows, LOSS),
    "perplexity, documents of unequal length": (documents, LOSS),
    "expected maximum toxicity": (toxicity, MEAN),
    "accuracy (Wilson)": (accuracy, SHARE),
}
PAIRS = {
    "perplexity, relative change": (pair_of(documents, slower), LOSS),
    "toxicity, difference": (pair_of(toxicity, detoxified), MEAN),
    "accuracy, difference": (pair_of(accuracy, worse_task), SHARE),
}


def coverage(sizes: list[int], repetitions: int, seed: int) -> None:
    print(f"Coverage of 95 % intervals in %, {repetitions} repetitions; +- is 1.96 standard errors")
    large = 4_000_000
    for name, (draw, statistic) in SINGLE.items():
        columns = draw(np.random.default_rng(seed + 1), large)
        x, w = statistic.quotient(columns)
        truth = float(statistic.linked(x.sum() / w.sum()))

        def holds(rng: np.random.Generator, n: int, draw: Any = draw, s: Any = statistic,
                  truth: float = truth) -> bool:  # fmt: skip
            low, high = measure(s, draw(rng, n), "", int(rng.integers(1 << 30))).ci
            return low <= truth <= high

        _line(name, holds, sizes, repetitions, seed)
    for name, (draw, statistic) in PAIRS.items():
        first, second = draw(np.random.default_rng(seed + 1), large)
        (x, w), (y, _) = statistic.quotient(first), statistic.quotient(second)
        a, b = (float(statistic.linked(z.sum() / w.sum())) for z in (x, y))
        relative = "relative" in name
        truth = b / a - 1 if relative else b - a

        def holds(rng: np.random.Generator, n: int, draw: Any = draw, s: Any = statistic,
                  truth: float = truth, relative: bool = relative) -> bool:  # fmt: skip
            found = paired(s, *draw(rng, n), seed=int(rng.integers(1 << 30)))
            low, high = (found.relative if relative else found.difference).interval()
            return low <= truth <= high

        _line(name, holds, sizes, repetitions, seed)


def curves(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, of n prompts, the effect of the model and of a circuit at each fraction kept.

    What a prompt has beyond the mean curve is much the same at neighbouring fractions, and less
    where nearly all is kept.
    """
    mean = 1 - np.exp(-np.array(FRACTIONS) / 0.05)
    steps = rng.normal(size=(n, len(FRACTIONS)))
    for i in range(1, len(FRACTIONS)):
        steps[:, i] = 0.9 * steps[:, i - 1] + math.sqrt(1 - 0.81) * steps[:, i]
    whole = rng.normal(3.0, 1.5, n)
    kept = whole[:, None] * mean + (0.2 + 0.8 * (1 - mean)) * steps
    kept[:, -1] = whole
    return whole, kept


def areas(sizes: list[int], repetitions: int, seed: int) -> None:
    """How often the intervals of CPR and CMD hold the areas under the curve of all prompts."""
    print(f"Coverage of 95 % intervals in %, {repetitions} repetitions; +- is 1.96 standard errors")
    whole, kept = curves(np.random.default_rng(seed + 1), 400_000)
    curve = kept.mean(0) / whole.mean()
    truths = {"cpr": area(FRACTIONS, curve), "cmd": area(FRACTIONS, np.abs(1 - curve))}

    def holds(rng: np.random.Generator, n: int) -> list[bool]:
        whole, kept = curves(rng, n)
        trial = object.__new__(Trial)  # one that was run already
        trial.ablator = SimpleNamespace(ablation="no")  # type: ignore[assignment]
        trial.full, trial.empty = Answers(whole, 0 * whole), Answers(0 * whole, 0 * whole)
        found = trial.areas(FRACTIONS, [Answers(values, 0 * values) for values in kept.T])
        ends = {name: getattr(found, name).ci for name in truths}
        return [ends[name][0] <= truth <= ends[name][1] for name, truth in truths.items()]

    for n in sizes:
        rng = np.random.default_rng(seed + n)
        shares = np.mean([holds(rng, n) for _ in range(repetitions)], 0)
        errors = 196 * np.sqrt(shares * (1 - shares) / repetitions)
        cells = [f"{name.upper()} {100 * share:.1f} +- {error:.1f}"
                 for name, share, error in zip(truths, shares, errors, strict=True)]  # fmt: skip
        print(f"  n={n:<4}" + "   ".join(cells), flush=True)


def _line(name: str, holds: Any, sizes: list[int], repetitions: int, seed: int) -> None:
    cells = []
    for n in sizes:
        rng = np.random.default_rng(seed + n)
        share = np.mean([holds(rng, n) for _ in range(repetitions)])
        error = 1.96 * math.sqrt(share * (1 - share) / repetitions)
        cells.append(f"n={n}: {100 * share:.1f} +- {100 * error:.1f}")
    print(f"  {name:42}" + "   ".join(cells), flush=True)


POLICIES = {
    "max_increase 0 (is it worse?)": {"toxicity": {"max_increase": 0}},
    "min_decrease 0 (is it better?)": {"toxicity": {"min_decrease": 0}},
    "max_increase 10 %": {"toxicity": {"max_increase": "10 %"}},
    "three rules at once": {"toxicity": {"max_increase": 0, "max_decrease": 0, "max": 1.0}},
}


def evaluation(name: str, scores: np.ndarray) -> Evaluation:
    """Return an evaluation of (prompts, completions) scores; the hash differs, as seeds do."""
    columns = toxicity_columns(scores)
    units = tuple(map(str, range(len(scores))))
    outcome = Outcome("toxicity", "simulated", STATISTICS, units, columns)
    return Evaluation(name, name, "", {"toxicity": outcome})


def alarms(name: str, draw: Callable[[np.random.Generator], Any], repetitions: int) -> None:
    print(f"{name}: identical models, other sampling seed, {repetitions} repetitions")
    for words, content in POLICIES.items():
        rules, rng, seen = parse_policy(content), np.random.default_rng(7), Counter()
        for _ in range(repetitions):
            first, second = draw(rng)
            gate = check_gate(rules, evaluation("b", second), evaluation("a", first))
            statuses = {check.status for check in gate.checks}
            seen["alarm" if "fail" in statuses else "pass" if gate.passed else "not shown"] += 1
        shares = {key: seen[key] / repetitions for key in ("alarm", "not shown", "pass")}
        bounds = {key: wilson(seen[key], repetitions) for key in shares}
        cells = [f"{k} {100 * v:.1f} % [{100 * bounds[k][0]:.1f}, {100 * bounds[k][1]:.1f}]"
                 for k, v in shares.items()]  # fmt: skip
        print(f"  {words:34}" + "   ".join(cells), flush=True)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
    "lognormal, sigma 1": lambda rng, n: (rng.lognormal(size=n) - math.exp(0.5)) / 2.1612,
    "3 % of units hit": lambda rng, n: hit(rng, n, 0.03),
    "gamma, shape 0.5": lambda rng, n: (rng.gamma(0.5, size=n) - 0.5) / math.sqrt(0.5),
    "Weibull, shape 0.7": lambda rng, n: (rng.weibull(0.7, n) - 1.26582) / 1.85117,
    "half hit, exponential": lambda rng, n: (
        ((rng.random(n) < 0.5) * rng.exponential(size=n) - 0.5) / math.sqrt(0.75)
    ),
    "Student's t, 3": lambda rng, n: rng.standard_t(3, n) / math.sqrt(3),
    "1 % of units hit": lambda rng, n: hit(rng, n, 0.01),
    "10 % of units hit": lambda rng, n: hit(rng, n, 0.1),
}
"""Damage by unit, of mean 0 and standard deviation 1; bounds were chosen with other seeds."""


def hit(rng: np.random.Generator, n: int, share: float) -> np.ndarray:
    """Most units hardly change, few by 25 times as much as the others scatter."""
    spread = math.sqrt(625 * share * (1 - share) + 1)
    return (25 * ((rng.random(n) < share) - share) + rng.normal(size=n)) / spread


def damage(sizes: list[int], repetitions: int, seed: int) -> None:
    """Perplexity rises by exactly the bound of 1 %, by windows of 1,023 tokens that differ."""
    print(f"{repetitions} repetitions, in %: false passes at the bound, intervals that hold the "
          "truth, passes of damage 3 standard errors below the bound")  # fmt: skip
    rule, error = parse_policy({"perplexity": {"max_increase": "1 %", "min_samples": 2}})[0], 0.01
    for shape, draw in SHAPES.items():
        for n in sizes:
            rng, seen = np.random.default_rng([seed, n]), Counter()
            widths: list[tuple[float, float]] = []
            for repetition in range(repetitions):
                tokens = np.full(n, 1023.0)
                before = {"loss": tokens * rng.normal(3.2, 0.4, n), "tokens": tokens}
                rise = math.log(1.01) + error * draw(rng, n)
                after = {**before, "loss": before["loss"] + tokens * rise}
                found = paired(LOSS, before, after, repetition).relative
                old = Bootstrap(found.value, found.resampled, found.n)  # expanded percentiles
                enough = not any(hidden(LOSS, after, rule))
                above = 0.01 + 3 * error / math.sqrt(n)
                for name, one in (("old", old), ("new", found)):
                    low, high = one.interval()
                    seen[f"{name} false"] += one.p_above(0.01) <= 0.05
                    seen[f"{name} power"] += one.p_above(above) <= 0.05
                    seen[f"{name} holds"] += low <= 0.01 <= high
                seen["gate false"] += enough and found.p_above(0.01) <= 0.05
                seen["gate power"] += enough and found.p_above(above) <= 0.05
                ends = old.interval(), found.interval()
                widths.append(tuple(high - low for low, high in ends))  # type: ignore[arg-type]
            share = {key: 100 * count / repetitions for key, count in seen.items()}
            wider = np.median([new / old for old, new in widths])
            cells = [
                f"{what}: percentile {share[f'old {key}']:.1f}, now {share[f'new {key}']:.1f}"
                + (f", gate {share[f'gate {key}']:.1f}" if key != "holds" else "")
                for what, key in (("false", "false"), ("holds", "holds"), ("harmless", "power"))
            ]
            print(f"  {shape:20} n={n:<4} {'   '.join(cells)}   width x {wider:.2f}", flush=True)


def simulated(prompts: int, completions: int) -> Callable[[np.random.Generator], Any]:
    """Each prompt has its own toxicity, each completion a score around it."""

    def draw(rng: np.random.Generator) -> tuple[Any, Any]:
        own = rng.beta(0.8, 4.0, (prompts, 1))
        return tuple(rng.beta(5 * own + 0.02, 5 * (1 - own), (prompts, completions))
                     for _ in range(2))  # fmt: skip

    return draw


def recorded(scores: np.ndarray, completions: int) -> Callable[[np.random.Generator], Any]:
    """Prompts drawn again, and for each two disjoint sets of its recorded completions."""

    def draw(rng: np.random.Generator) -> tuple[Any, Any]:
        chosen = rng.permuted(scores[rng.integers(0, len(scores), len(scores))], axis=1)
        return chosen[:, :completions], chosen[:, completions : 2 * completions]

    return draw


def generate(model: str, prompts: str, n: int, completions: int) -> np.ndarray:
    from excise import load_model
    from excise.core.documents import read_texts
    from excise.core.generation import Decoding, complete
    from excise.eval.completions import decoded, distinct
    from excise.eval.scorers import get_scorer, score_texts

    loaded = load_model(model)
    texts = distinct(read_texts(prompts))
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:n]]
    ids = [tuple(loaded.tokenizer(text)["input_ids"]) for text in texts]
    made = dict(complete(loaded.model, ids, Decoding(completions), 32))
    rows = decoded(loaded.tokenizer, [{"completions": made[i]} for i in range(len(ids))])
    flat = [text for row in rows for text in row]
    return np.array(score_texts(get_scorer("profanity"), flat)).reshape(len(ids), completions)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--damage-sizes", type=int, nargs="+", default=[16, 30, 100, 300])
    parser.add_argument("--area-sizes", type=int, nargs="+", default=[8, 16, 24, 48])
    parser.add_argument("--only", choices=("damage", "coverage", "areas", "alarms"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="Use completions of this model for the gate.")
    parser.add_argument("--prompts", help="File of prompts for it.")
    parser.add_argument("--n-prompts", type=int, default=100)
    parser.add_argument("--completions", type=int, default=20, help="Recorded per prompt.")
    parser.add_argument("--scores", type=Path, help="JSON file that keeps the recorded scores.")
    options = parser.parse_args()
    if options.model:
        kept: Path | None = options.scores
        if kept and kept.is_file():
            scores = np.array(json.loads(kept.read_text()))
        else:
            asked = (options.model, options.prompts, options.n_prompts, options.completions)
            scores = generate(*asked)
        if kept:
            kept.write_text(json.dumps(scores.tolist()))
        for k in (1, 5):
            name = f"{options.model}, {len(scores)} prompts x {k} completions"
            alarms(name, recorded(scores, k), options.repetitions)
        return
    times, seed, only = options.repetitions, options.seed, options.only
    if only in (None, "damage"):
        damage(options.damage_sizes, times, seed)
    if only in (None, "coverage"):
        coverage(options.sizes, times, seed)
    if only in (None, "areas"):
        areas(options.area_sizes, times, seed)
    if only in (None, "alarms"):
        for n, k in ((30, 1), (100, 1), (100, 25)):
            alarms(f"simulated, {n} prompts x {k} completions", simulated(n, k), times)


if __name__ == "__main__":
    main()
