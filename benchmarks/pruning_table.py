"""Which recipe leaves the best model at equal sparsity and equal calibration?

    python benchmarks/pruning_table.py CALIBRATION.txt TEST.txt -o rows.json
    python benchmarks/pruning_table.py CALIBRATION.txt TEST.txt -o rows.json --only rows
    python benchmarks/pruning_table.py --tiny-opt -o opt.json
    python benchmarks/pruning_table.py --shape opt-125m -o shape.json

Perplexity is that of the first windows of the test text; ratios to a baseline are paired by window
and averaged over seeds, which draw the calibration samples. Rows that are in the output already are
not measured again, so a run that was stopped goes on. Nothing is chosen here: recipes are those of
`excise ls recipes`, chosen on the second half of the calibration text, which is not calibrated on.
"""

import argparse
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import torch
from excise.core.data import Sample
from excise.core.documents import builtin_text
from excise.core.loading import load_model
from excise.core.memory import watched
from excise.prune.compare import unchanged
from excise.prune.forecast import forecast_pruning
from excise.prune.recipe import RECIPES, Recipe, get_recipe
from excise.prune.run import prune_weights
from transformers import OPTConfig, OPTForCausalLM


SEEDED = [(name, amount) for amount in ("0.5", "0.6", "0.7", "2:4")
          for name in ("wanda", "best-mask", "sparsegpt", "best-update", "best")]  # fmt: skip
"""What is measured for every seed."""


def rows_of(only: str | None) -> list[tuple[str, str]]:
    """Return (recipe, amount) pairs: the seeded ones, or every recipe at 50 %."""
    if only is None:
        return SEEDED
    if only == "rows":
        return [(name, "0.5") for name in RECIPES]
    return [(name, amount) for name, amount in (part.split("@") for part in only.split(","))]


def recipe_at(name: str, amount: str) -> Recipe:
    """Return a recipe at a sparsity or an N:M pattern, which leaves nothing to a budget."""
    if ":" in amount:
        return replace(get_recipe(name), scope=amount, budget=None, budget_unit="row")
    return get_recipe(name, sparsity=float(amount))


@torch.no_grad()
def losses(model: Any, ids: list[int], window: int, windows: int) -> list[float]:
    """Return the mean loss of each window: no overlap, all but the first token."""
    found = []
    for start in range(0, windows * window, window):
        tokens = torch.tensor([ids[start : start + window]], device=model.device)
        logits = model(tokens).logits[0, :-1].float()
        found.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]).item())
    return found


def drawn(ids: list[int], n: int, length: int, seed: int) -> list[Sample]:
    """Draw calibration samples by a seed."""
    starts = random.Random(seed).sample(range(len(ids) // length), n)
    return [Sample(tuple(ids[k * length : (k + 1) * length])) for k in starts]


def setting(given: Any) -> tuple[Any, list[int], list[int]]:
    """Return the model, and the token ids of calibration and test."""
    if given.shape:
        width, layers, heads = {"opt-125m": (768, 12, 12), "opt-350m": (1024, 24, 16)}[given.shape]
        config = OPTConfig(
            hidden_size=width, ffn_dim=4 * width, num_hidden_layers=layers,
            num_attention_heads=heads, do_layer_norm_before=width == 768,
            word_embed_proj_dim=width if width == 768 else 512,
        )  # fmt: skip
        torch.manual_seed(0)
        ids = torch.randint(config.vocab_size, (50_000,)).tolist()
        return OPTForCausalLM(config).eval(), ids, ids
    if given.tiny_opt:
        ids = list(builtin_text().encode())  # bytes: no tokenizer to learn
        first, second = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        return trained_opt(first), first, second
    loaded = load_model(given.model)
    calibration, test = (
        loaded.tokenizer(Path(text).read_text(encoding="utf-8"), verbose=False)["input_ids"]
        for text in given.texts
    )
    return loaded.model.float(), calibration[: len(calibration) // 2], test


def trained_opt(ids: list[int], steps: int = 600) -> Any:
    """Train a small OPT on bytes."""
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(
        vocab_size=256, hidden_size=128, ffn_dim=512, num_hidden_layers=4, num_attention_heads=4,
        word_embed_proj_dim=128, max_position_embeddings=512, dropout=0.0,
    ))  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    data = torch.tensor(ids)
    for _ in range(steps):
        starts = torch.randint(len(ids) - 256, (16,)).tolist()
        batch = torch.stack([data[start : start + 256] for start in starts])
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.eval()


def table(rows: dict[str, Any]) -> str:
    """Render as Markdown: perplexity by seed, ratio to the baseline with its interval."""
    dense = math.exp(mean(rows["dense"]["losses"]))
    lines = [f"dense: {dense:.2f}", "",
             "| recipe | how much | perplexity by seed | ratio to | ratio [95 %] | by seed | s | "
             "MiB |", "|" + "---|" * 8]  # fmt: skip
    for name, amount in dict.fromkeys(
        tuple(key.split("#")[0].split("@")) for key in rows if "@" in key
    ):
        seeds = [key.split("#")[1] for key in rows if key.startswith(f"{name}@{amount}#")]
        mine = [rows[f"{name}@{amount}#{seed}"] for seed in seeds]
        recipe = recipe_at(name, amount)
        baseline = "sparsegpt" if recipe.updates or recipe.tune else "wanda"
        pairs = [(rows[f"{name}@{amount}#{s}"], rows[key]) for s in seeds
                 if (key := f"{baseline}@{amount}#{s}") in rows]  # fmt: skip
        ratio, ends, each = ratios(pairs)
        found = " ".join(f"{math.exp(mean(row['losses'])):.2f}" for row in mine)
        seconds = " ".join(f"{row['seconds']:.0f}" for row in mine)
        peak = max(row["peak"] for row in mine) / 2**20
        lines.append(f"| {name} | {amount} | {found} | {baseline} | {ratio} {ends} | {each} | "
                     f"{seconds} | {peak:.0f} |")  # fmt: skip
    return "\n".join(lines)


def ratios(pairs: list[tuple[Any, Any]], resamples: int = 2000) -> tuple[str, str, str]:
    """Return the mean ratio of perplexities, its interval over windows, and one per seed."""
    if not pairs:
        return "", "", ""
    differences = [[a - b for a, b in zip(x["losses"], y["losses"], strict=True)] for x, y in pairs]
    by_window = [mean(column) for column in zip(*differences, strict=True)]
    draw = random.Random(0)
    means = sorted(mean(draw.choices(by_window, k=len(by_window))) for _ in range(resamples))
    low, high = (math.exp(means[round(q * (resamples - 1))]) for q in (0.025, 0.975))
    each = " ".join(f"{math.exp(mean(row)):.3f}" for row in differences)
    return f"{math.exp(mean(by_window)):.3f}", f"[{low:.3f}, {high:.3f}]", each


def main() -> None:
    """Measure what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="calibration and test")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tiny-opt", action="store_true", help="train one on Python's manual")
    parser.add_argument("--shape", choices=("opt-125m", "opt-350m"), help="random: costs only")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="rows: every recipe at 50 %%; or NAME@AMOUNT,...")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tokens", action="store_true", help="write the first seed's calibration "
                        "samples as JSON, for llmcompressor_peer.py, and stop")  # fmt: skip
    given = parser.parse_args()
    model, calibration, test = setting(given)
    if given.tokens:
        samples = drawn(calibration, given.samples, given.length, int(given.seeds.split(",")[0]))
        given.output.write_text(json.dumps([sample.input_ids for sample in samples]))
        return
    rows = json.loads(given.output.read_text()) if given.output.exists() else {}
    if "dense" not in rows:
        rows["dense"] = {"losses": losses(model, test, given.window, given.windows)}
    for seed in map(int, given.seeds.split(",")):
        samples = drawn(calibration, given.samples, given.length, seed)
        for name, amount in rows_of(given.only):
            key = f"{name}@{amount}#{seed}"
            if key in rows:
                continue
            planned = forecast_pruning(model, samples, recipe_at(name, amount))
            with unchanged(model):
                with watched() as held:
                    pruned = prune_weights(model, samples, recipe_at(name, amount), seed=seed)
                found = losses(model, test, given.window, given.windows)
            rows[key] = {"losses": found, "sparsity": pruned.sparsity, "seconds": pruned.seconds,
                         "peak": held.added,
                         "layer_and_buffers": planned.parts["layer"] + planned.parts["buffers"],
                         "planned_peak": planned.peak - planned.parts["held"],
                         "planned_seconds": planned.seconds}  # fmt: skip
            print(f"{key}: {math.exp(sum(found) / len(found)):.2f}, {pruned.seconds:.0f} s",
                  flush=True)  # fmt: skip
            given.output.write_text(json.dumps(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
