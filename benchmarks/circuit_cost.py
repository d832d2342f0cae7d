"""What do scores for circuits cost? CPU-seconds and memory, one thread.

    OMP_NUM_THREADS=1 python benchmarks/circuit_cost.py
    OMP_NUM_THREADS=1 python benchmarks/circuit_cost.py --family opt

A model of 160 M parameters (12 layers of 12 heads, 768 wide, 4 KV heads in Llama) with random
weights, 16 pairs of prompts of 16 tokens, two batches of 8: the setting in which the peers were
measured. CPU time, not wall time, so that other jobs matter less; each row is the best of some
rounds, with the range.
"""

import argparse
import time
from typing import Any

import torch
from excise.circuits.attribution import attribute
from excise.circuits.graph import Graph
from excise.circuits.pairs import Pairs
from excise.core.data import Sample
from excise.core.families import ModelView
from excise.core.memory import peak, watched
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig


PAIRS, TOKENS, BATCH = 16, 16, 8


def shape(family: str) -> Any:
    """Build the model with random weights."""
    torch.manual_seed(0)
    shared = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768}
    config = (
        OPTConfig(**shared, ffn_dim=3072, word_embed_proj_dim=768)
        if family == "opt"
        else LlamaConfig(**shared, num_key_value_heads=4, intermediate_size=2048, vocab_size=32_000)
    )
    return AutoModelForCausalLM.from_config(config).eval()


def pairs(vocabulary: int) -> Pairs:
    """Draw prompts and counterfactuals."""
    ids = torch.randint(5, vocabulary, (2, PAIRS, TOKENS)).tolist()
    clean, other = ([Sample(tuple(row), 7, 9) for row in rows] for rows in ids)
    return Pairs(tuple(clean), tuple(other))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=("llama", "opt"), default="llama")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = shape(given.family)
    prompts = pairs(model.config.vocab_size)
    graph = Graph.of(ModelView.of(model))
    print(f"{given.family}: {graph.n_edges:,} edges, {len(graph.writers) - 1} nodes")
    rows: dict[str, dict[str, Any]] = {
        "nodes, relp": {"method": "relp"},
        "nodes and neurons, relp": {"method": "relp", "neurons": True},
        "edges, relp": {"method": "relp", "nodes": False, "edges": True},
        "nodes, neurons and edges, relp": {"method": "relp", "neurons": True, "edges": True},
        "edges, eap": {"method": "eap", "nodes": False, "edges": True},
        "edges, eap-ig": {"method": "eap-ig", "nodes": False, "edges": True},
    }
    for name, options in rows.items():
        seconds, added = [], 0
        for _ in range(given.rounds):
            started = time.process_time()
            with watched() as held:
                attribute(model, prompts, batch_size=BATCH, **options)
            seconds.append(time.process_time() - started)
            added = max(added, held.added)
        print(f"{name:32} {min(seconds):6.2f} CPU-s (to {max(seconds):.2f}), "
              f"{added / 2**20:6.0f} MiB over the model")  # fmt: skip
    print(f"peak of the process, the model included: {peak() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
