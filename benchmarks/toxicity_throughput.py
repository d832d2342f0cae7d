"""How fast completions come, against a loop that generates one at a time.

    python benchmarks/toxicity_throughput.py smollm2 [--prompts FILE]

The loop is what harnesses without batching do: `generate` with the same settings, one prompt and
one completion a call. Both sides run on the same prompts, in turns, several rounds.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from excise import load_model
from excise.core.documents import read_texts
from excise.core.generation import Decoding, complete
from excise.eval.repetition import PROMPTS


def naive(loaded: Any, prompts: list[tuple[int, ...]], decoding: Decoding) -> int:
    """Return how many tokens a plain loop made."""
    made = 0
    for ids in prompts:
        for number in range(decoding.completions):
            torch.manual_seed(number)
            out = loaded.model.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
                do_sample=True, top_p=decoding.top_p, temperature=decoding.temperature, top_k=0,
                max_new_tokens=decoding.new_tokens, pad_token_id=0,
            )  # fmt: skip
            made += out.shape[1] - len(ids)
    return made


def batched(
    loaded: Any, prompts: list[tuple[int, ...]], decoding: Decoding, batch_size: int
) -> int:
    """Return how many tokens ours made."""
    found = complete(loaded.model, prompts, decoding, batch_size)
    return sum(len(ids) for _, rows in found for ids in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompts", help="A file; by default those of the repetition metric.")
    parser.add_argument("--n-prompts", type=int, default=32)
    parser.add_argument("--completions", type=int, default=5)
    parser.add_argument("--naive-prompts", type=int, default=4, help="The loop gets fewer.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loaded = load_model(options.model)
    texts = PROMPTS
    if options.prompts:
        texts = read_texts(options.prompts)
    prompts = [tuple(loaded.tokenizer(text)["input_ids"]) for text in texts[: options.n_prompts]]
    decoding = Decoding(options.completions)

    def rate(run: Any, *arguments: Any) -> float:
        started = time.perf_counter()
        made = run(loaded, *arguments)
        return made / (time.perf_counter() - started)

    ratios: dict[int, list[float]] = {size: [] for size in options.batch_sizes}
    for number in range(options.rounds):
        plain = rate(naive, prompts[: options.naive_prompts], decoding)
        line = f"round {number + 1}: one at a time {plain:.0f} tokens/s"
        for size in options.batch_sizes:
            ours = rate(batched, prompts, decoding, size)
            ratios[size].append(ours / plain)
            line += f"; {size} at a time {ours:.0f} ({ours / plain:.1f} x)"
        print(line, flush=True)
    for size, found in ratios.items():
        low, high = min(found), max(found)
        print(f"{size} at a time: {statistics.median(found):.1f} x ({low:.1f} to {high:.1f})")


if __name__ == "__main__":
    main()
