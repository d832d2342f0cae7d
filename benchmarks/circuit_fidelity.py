"""How well do fast scores agree with exact activation patching?

    python benchmarks/circuit_fidelity.py tiny -o tiny.json
    python benchmarks/circuit_fidelity.py smollm2 -o smollm2.json

`tiny` trains two small models (Llama with KV groups, OPT) on an indirect-object task over symbols
until they do it, and patches all of their nodes and edges, seeds 0 to 2; `smollm2` patches the
heads and MLPs of SmolLM2-135M on IOI. Printed is Pearson's correlation of mean scores with mean
effects over components, for every method: all nodes, heads, MLPs, edges. Where a score speaks of
zero instead of the counterfactual (lrp, gradient-x-activation), that is what it is compared with,
too: the counterfactual is what patching replaces with.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from excise.circuits.attribution import attribute
from excise.circuits.methods import CIRCUIT_METHODS
from excise.circuits.pairs import Pairs, encode_pairs
from excise.circuits.scores import Attribution
from excise.core.data import Sample
from excise.core.loading import load_model
from excise.tasks.registry import task_prompts
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig


NAMES, FILLERS, END = range(4, 34), range(34, 44), 3
METHODS = [name for name, method in CIRCUIT_METHODS.items() if not method.exact]


def prompt(draw: random.Random) -> tuple[list[int], int, int, int]:
    """Return tokens, answer, wrong answer, and where the name that decides stands again.

    Two names, some fillers, one of the names again, the end sign: the other name follows.
    """
    receiver, giver = draw.sample(NAMES, 2)
    names = [receiver, giver] if draw.random() < 0.5 else [giver, receiver]
    fillers = draw.choices(FILLERS, k=5)
    ids = [1, names[0], fillers[0], names[1], *fillers[1:], giver, END]
    return ids, receiver, giver, len(ids) - 2


def trained(family: str, seed: int, steps: int = 1500) -> Any:
    """Train a small model until it names the other one."""
    torch.manual_seed(seed)
    shared = {"vocab_size": 48, "hidden_size": 96, "num_hidden_layers": 3,
              "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    config = (
        OPTConfig(**shared, ffn_dim=192, word_embed_proj_dim=96, dropout=0.0)
        if family == "opt"
        else LlamaConfig(**shared, intermediate_size=192, num_key_value_heads=2)
    )
    model = AutoModelForCausalLM.from_config(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    draw = random.Random(seed)
    for _ in range(steps):
        rows = [prompt(draw) for _ in range(128)]
        logits = model(torch.tensor([row[0] for row in rows])).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor([row[1] for row in rows])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return model.eval()


def drawn(n: int, seed: int) -> Pairs:
    """Draw prompts, with a third name where the giver stands again as the counterfactual."""
    draw = random.Random(seed)
    clean, other = [], []
    for _ in range(n):
        ids, answer, wrong, at = prompt(draw)
        third = draw.choice([name for name in NAMES if name not in (answer, wrong)])
        clean.append(Sample(tuple(ids), answer, wrong))
        other.append(Sample((*ids[:at], third, *ids[at + 1 :]), answer, wrong))
    return Pairs(tuple(clean), tuple(other))


KINDS: dict[str, Callable[[Attribution], torch.Tensor | None]] = {
    "nodes": lambda found: found.nodes,
    "heads": lambda found: found.heads,
    "MLPs": lambda found: found.mlps,
    "edges": lambda found: found.edges,
}


def correlations(found: Attribution, exact: Attribution) -> dict[str, float]:
    """Return Pearson's correlation by kind of component."""
    rows = {}
    for kind, of in KINDS.items():
        one, other = of(found), of(exact)
        if one is not None and other is not None:
            means = one.mean(0).flatten().numpy(), other.mean(0).flatten().numpy()
            rows[kind] = float(np.corrcoef(*means)[0, 1])
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("tiny", "smollm2"))
    parser.add_argument("--task", default="ioi")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", help="comma-separated; default: all")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    rows: dict[str, dict[str, dict[str, float]]] = {}
    if given.what == "smollm2":
        loaded = load_model("smollm2")
        made = task_prompts(given.task, loaded.tokenizer, given.prompts, 0, "train")
        settings = [("smollm2", loaded.model.float(), encode_pairs(loaded.tokenizer, made), False)]
    else:
        settings = [
            (f"{family} {seed}", trained(family, seed), drawn(given.prompts, 100 + seed), True)
            for family in ("llama", "opt")
            for seed in range(given.seeds)
        ]
    for name, model, pairs, edges in settings:
        exact = attribute(model, pairs, "patching", edges=edges, batch_size=16)
        for method in given.methods.split(",") if given.methods else METHODS:
            found = attribute(model, pairs, method, edges=edges)
            rows.setdefault(method, {})[name] = correlations(found, exact)
        given.output.write_text(json.dumps(rows))
        print(f"{name}: {len(pairs)} prompts", flush=True)
    kinds = list(next(iter(next(iter(rows.values())).values())))
    columns = [(name, kind) for name, *_ in settings for kind in kinds]
    print("| method | " + " | ".join(f"{name} {kind}" for name, kind in columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for method, found in rows.items():
        cells = [f"{found[name].get(kind, float('nan')):.3f}" for name, kind in columns]
        print(f"| `{method}` | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
