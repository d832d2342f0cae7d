"""Whole units taken out: what is left of the model, and how much faster is it?

    python benchmarks/structured_table.py CALIBRATION.txt TEST.txt
    python benchmarks/structured_table.py CALIBRATION.txt TEST.txt --components layers

Each criterion takes out the same number of units, with the same calibration samples, and perplexity
is that of the first windows of the test text and of the second half of the calibration text, which
is not calibrated on. Speed is greedy generation, dense and smaller model in turn, several rounds.
"""

import argparse
import copy
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from excise.core.data import batches
from excise.core.families import ModelView
from excise.core.loading import load_model
from excise.prune.structured.compensation import mean_inputs_of
from excise.prune.structured.shrink import select_uniform, shrink
from excise.prune.structured.units import UNIT_CRITERIA, unit_scores
from pruning_table import drawn, losses


def tokens_per_second(model: Any, prompt: Any, new: int) -> float:
    """Time one greedy completion."""
    started = time.perf_counter()
    model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                   attention_mask=torch.ones_like(prompt))  # fmt: skip
    return new / (time.perf_counter() - started)


def main() -> None:
    """Measure every criterion."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs=2, metavar="TEXT", help="calibration and test")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--components", default="neurons", choices=("neurons", "heads", "layers"))
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--criteria", help="Comma-separated; all by default.")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=48)
    given = parser.parse_args()
    loaded = load_model(given.model)
    dense = loaded.model.float()
    text, test = (
        loaded.tokenizer(Path(name).read_text(encoding="utf-8"), verbose=False)["input_ids"]
        for name in given.texts
    )
    half = len(text) // 2
    samples = drawn(text[:half], given.samples, given.length, given.seed)

    def perplexities(model: Any) -> str:
        parts = [fmean(losses(model, ids, 1024, given.windows)) for ids in (text[half:], test)]
        return " | ".join(f"{torch.tensor(part).exp():.2f}" for part in parts)

    print("| criterion | validation | test |\n|---|---|---|", flush=True)
    print(f"| dense | {perplexities(dense)} |", flush=True)
    smaller = dense
    wanted = given.criteria.split(",") if given.criteria else UNIT_CRITERIA
    for name in wanted:
        if given.components not in UNIT_CRITERIA[name].components:
            continue
        scores = unit_scores(dense, samples, given.components, name, seed=given.seed)
        mask = select_uniform(scores, given.components, given.sparsity, ModelView.of(dense))
        smaller = copy.deepcopy(dense)
        shrink(smaller, mask)
        print(f"| {name} | {perplexities(smaller)} |", flush=True)
        if given.components == "neurons":
            means = mean_inputs_of(dense, batches(samples, 4), "neurons")
            again = copy.deepcopy(dense)
            shrink(again, mask, means)
            print(f"| {name}, compensated | {perplexities(again)} |", flush=True)
    prompt = torch.tensor([test[:32]])
    rates = [[tokens_per_second(model, prompt, given.new_tokens) for model in (dense, smaller)]
             for _ in range(given.rounds + 1)][1:]  # fmt: skip
    ratios = [after / before for before, after in rates]
    count = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (dense, smaller)]
    print(f"\n{count[0]:.1f} -> {count[1]:.1f} M parameters; generation {median(ratios):.2f} x "
          f"({min(ratios):.2f} to {max(ratios):.2f}), dense {median(r[0] for r in rates):.1f} "
          "tokens/s")  # fmt: skip


if __name__ == "__main__":
    main()
