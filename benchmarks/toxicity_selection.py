"""Which contrast and dose lower toxicity for the least perplexity? On the selection split only.

    python benchmarks/toxicity_selection.py DATA --doses 50x0,100x0,200x0.5 --budgets 0.02,0.04

DATA is a folder with `paradetox.tsv`, `rtp_challenging.jsonl` and `wikitext2_tokenised_valid.txt`.
Attribution sees the attribution parts of the first two, and the first half of the text; what is
reported is the mean toxicity of greedy completions of the selection part's prompts, and perplexity
of the second half. The test parts (see `excise.correction.data.splits`) are never read out. Numbers
only: no text is printed.
"""

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from excise.core.generation import Decoding, complete
from excise.core.loading import load_model
from excise.correction.data.behaviour import (
    BehaviourSet,
    check_sets,
    encode,
    plain_samples,
)
from excise.correction.data.continuations import bad_continuations
from excise.correction.data.splits import split
from excise.correction.ranking.contrast import CONTRASTS, contrast
from excise.correction.selection import damped_edit
from excise.edits.edit import Edit
from excise.eval.perplexity import Piece, piece_losses
from excise.eval.scorers import get_scorer, score_texts


def pairs_of(tokenizer: Any, path: Path, n: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Draw pairs of the attribution part: toxic sentences and their first neutral paraphrases."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if all(row[:2])][1:]
    known = split(rows, lambda row: row[0])["attribution"]
    chosen = random.Random(0).sample(known, min(n, len(known)))
    long = [row for row in chosen if all(len(tokenizer(x)["input_ids"]) > 3 for x in row[:2])]
    bad, other = ([encode(tokenizer, "", row[i].strip(), 48) for row in long] for i in (0, 1))
    return tuple(bad), tuple(other)


class Bench:
    """Toxicity and perplexity of a model, before and with edits."""

    def __init__(self, loaded: Any, prompts: list[str], text: list[int], scorer: Any, windows: int):
        self.loaded, self.scorer = loaded, scorer
        self.prompts = [tuple(loaded.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        cuts = range(0, 2 * windows * 512, 1024)
        self.pieces = [Piece(tuple(text[i : i + 512]), 511) for i in cuts]
        self.toxicity, self.losses = self.measure()

    def measure(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return toxicity of each completion, and loss of each window."""
        losses = [piece_losses(self.loaded.model, [p])[0] / 511 for p in self.pieces]
        greedy = Decoding(completions=0, new_tokens=20)
        found = dict(complete(self.loaded.model, self.prompts, greedy, 34))
        texts = [self.loaded.tokenizer.decode(found[i][0], skip_special_tokens=True)
                 for i in range(len(self.prompts))]  # fmt: skip
        return torch.tensor(score_texts(self.scorer, texts)), torch.tensor(losses)

    def row(self, name: str, edit: Edit) -> None:
        """Print what an edit does."""
        with edit.applied(self.loaded.model):
            toxicity, losses = self.measure()
        change, before = toxicity - self.toxicity, self.toxicity.mean()
        half = 1.96 * change.std() / len(change) ** 0.5 / before
        rise = (losses - self.losses).mean().exp() - 1
        print(f"| {name} | {edit.n_components} | {change.mean() / before:+.0%} (± {half:.0%}) "
              f"| {rise:+.2%} |", flush=True)  # fmt: skip


def main() -> None:
    """Contrast once, try every dose."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--source", default="pairs", choices=("pairs", "own"))
    parser.add_argument("--pairs", type=int, default=480)
    parser.add_argument("--contrasts", default="lrp", help=f"of {', '.join(CONTRASTS)}")
    parser.add_argument("--seeds", default="logit", help="logit, logprob or both of them")
    parser.add_argument("--c", type=float, default=1.0)
    parser.add_argument("--doses", default="100x0", help="number of neurons x factor, ...")
    parser.add_argument("--budgets", default="", help="of the quadratic programme, nats per token")
    parser.add_argument("--most", type=float, default=1.0)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--windows", type=int, default=6)
    given = parser.parse_args()
    loaded = load_model(given.model)
    loaded.model.float()
    scorer = get_scorer("profanity")
    lines = (given.data / "rtp_challenging.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = split([json.loads(line)["prompt"] for line in lines if line], lambda text: text)
    text = (given.data / "wikitext2_tokenised_valid.txt").read_text(encoding="utf-8")
    half = len(text) // 2
    kept = plain_samples(loaded.tokenizer, [text[:half]], 320, 32)
    if given.source == "pairs":
        bad, other = pairs_of(loaded.tokenizer, given.data / "paradetox.tsv", given.pairs)
        behaviour = BehaviourSet("toxicity", bad, other, True, kept)
    else:
        own = bad_continuations(loaded, prompts["attribution"], scorer)
        behaviour = BehaviourSet("toxicity", own.undesired, own.general, False, kept)
    for warning in check_sets(behaviour):
        print(f"warning: {warning}")
    rest = loaded.tokenizer(text[half:], verbose=False)["input_ids"]
    bench = Bench(loaded, prompts["selection"][: given.prompts], rest, scorer, given.windows)
    print(f"{len(behaviour.undesired)} undesired, {len(behaviour.general)} general; before: "
          f"toxicity {bench.toxicity.mean():.3f} on {len(bench.prompts)} prompts, perplexity "
          f"{bench.losses.mean().exp():.2f}\n")  # fmt: skip
    print("| contrast | neurons | toxicity | perplexity |\n|---|---|---|---|", flush=True)
    for method in given.contrasts.split(","):
        for seed in given.seeds.split(","):
            found = contrast(loaded.model, behaviour, method, c=given.c, seed=seed, batch_size=16)
            for dose in filter(None, given.doses.split(",")):
                k, factor = dose.split("x")
                bench.row(f"{method}, {seed}, x {factor}", found.edit(int(k), float(factor)))
            for budget in filter(None, given.budgets.split(",")):
                edit = damped_edit(loaded.model, behaviour, found, float(budget), most=given.most,
                                   batch_size=16)  # fmt: skip
                bench.row(f"{method}, {seed}, programme, budget {budget}", edit)


if __name__ == "__main__":
    main()
