"""Prune a model with the peer llmcompressor: its Wanda or SparseGPT, on our calibration samples.

    PYTHON benchmarks/llmcompressor_peer.py MODEL TOKENS --method wanda --sparsity 0.5 -o OUT
    PYTHON benchmarks/llmcompressor_peer.py MODEL TOKENS --method sparsegpt --structure 2:4 -o OUT

PYTHON belongs to an environment of its own, since llmcompressor wants an older transformers:
`pip install torch==2.13.0`, then `pip install llmcompressor==0.14.0.1`; excise is not needed.
TOKENS is a JSON file, a list of lists of token ids. OUT is a plain folder with zeros in it.

One decoder layer after the other: all samples pass the layer, its linears are pruned at once, all
samples pass again, and what comes out is the next layer's input. float32, on the CPU.
"""

import argparse
import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


TOKENIZER = ("*token*", "vocab.*", "merges.txt", "chat_template*")


def decoder_linears(model):
    """Name the linears inside the decoder layers; lm_head and projections outside stay dense."""
    layers = [
        (prefix, layer)
        for prefix, layer in model.named_modules()
        if type(layer).__name__ in model._no_split_modules
    ]
    return [
        f"{prefix}.{name}"
        for prefix, layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]


def modifier(args, names):
    sparsity, structure = args.sparsity, "0:0"
    if args.structure:
        kept, of = map(int, args.structure.split(":"))
        sparsity, structure = 1 - kept / of, f"{of - kept}:{of}"  # its N of M are those that go
    given = {"sparsity": sparsity, "mask_structure": structure, "targets": names}
    if args.method == "wanda":
        return WandaPruningModifier(**given)
    return SparseGPTModifier(block_size=128, dampening_frac=0.01, **given)


def read_samples(file):
    samples = json.loads(Path(file).read_text())
    if not samples or not samples[0] or len({len(ids) for ids in samples}) != 1:
        raise SystemExit(f"{file}: expected samples of one length, at least one token each")
    return samples


def copy_tokenizer(source, target):
    """Copy a tokenizer as it is, if there is one: saving it anew may change its files."""
    for pattern in TOKENIZER:
        for file in Path(source).glob(pattern):
            shutil.copy(file, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a plain folder")
    parser.add_argument("tokens", help="calibration samples, all of one length")
    parser.add_argument("--method", choices=("wanda", "sparsegpt"), required=True)
    how_much = parser.add_mutually_exclusive_group(required=True)
    how_much.add_argument("--sparsity", type=float)
    how_much.add_argument("--structure", help="N kept of each M consecutive inputs, as in 2:4")
    parser.add_argument("-o", "--out", required=True)
    args = parser.parse_args()
    if torch.accelerator.is_available():  # llmcompressor would take it
        raise SystemExit("hide the accelerator first, as with CUDA_VISIBLE_DEVICES=")

    samples = read_samples(args.tokens)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    names = decoder_linears(model)
    # A DataLoader is taken as it is. A Dataset would be shuffled, sorted or cut.
    batches = DataLoader([{"input_ids": torch.tensor(ids)} for ids in samples], batch_size=1)
    start = time.perf_counter()
    # No tokenizer is needed, yet without any processor it would look for one in the folder.
    oneshot(model=model, processor=object(), dataset=batches, recipe=modifier(args, names))
    seconds = time.perf_counter() - start

    # The class's own method: oneshot has replaced the instance's by one that compresses.
    type(model).save_pretrained(model, args.out)
    copy_tokenizer(args.model, args.out)

    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    weights = [saved.get_submodule(name).weight for name in names]
    shares = [float((weight == 0).double().mean()) for weight in weights]
    sizes = [weight.numel() for weight in weights]
    total = sum(share * n for share, n in zip(shares, sizes, strict=True)) / sum(sizes)
    asked = f"{args.method} {args.structure or args.sparsity}"
    print(f"llmcompressor {version('llmcompressor')}: {asked}, {len(samples)} x {len(samples[0])}")
    print(f"sparsity {total:.6f} over {len(names)} linears, {seconds:.1f} s")
    print(f"a single linear {min(shares):.6f} to {max(shares):.6f}")


if __name__ == "__main__":
    main()
