"""What a relevance pass costs, side by side with a plain backward pass of the same model.

    python benchmarks/engine_cost.py                      # SmolLM2-135M, 4 x 256 tokens, CPU
    python benchmarks/engine_cost.py --lxt-python PYTHON  # and LXT efficient, in its own process

Times: the median of several rounds, each round running every kind once, so that drift of the
machine hits all alike. Memory: peak resident size of one process per kind (GPU: allocator peak).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import torch
from excise.core.memory import peak, resident
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


KINDS = (
    "plain",
    "heads+neurons",
    "weight gradients",
    "weights",
    "weight gradients, checkpointed",
    "weights, checkpointed",
)
"""`plain` is forward + backward to the embeddings; `weights` the second moment of all linears."""


def make_batch(model, args):
    from excise.core.data import Sample, collate

    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    rows = torch.randint(10, vocabulary, (args.batch, args.tokens), generator=generator)
    return collate([Sample(tuple(row.tolist())) for row in rows]).to(model.device)


def set_checkpointing(model, on):
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = on
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def runner(kind, model, args):
    """Return a function that runs one kind once."""
    from excise.core.frozen import frozen
    from excise.lrp.fitter import RelevanceFitter
    from excise.lrp.targets import NextTokens

    batch, target = make_batch(model, args), NextTokens()
    checkpointed = kind.endswith("checkpointed")

    def switch(on):
        if checkpointed:
            set_checkpointing(model, on)

    kind = kind.split(",")[0]
    if kind in ("plain", "weight gradients"):

        def plain():
            switch(True)
            inputs = batch.model_inputs(explicit_positions=False)
            if kind == "plain":
                from excise.core.families import ModelView

                with frozen(ModelView.of(model)):
                    target(model(**inputs).logits, batch).sum().backward()
            else:
                model.train(checkpointed)
                target(model(**inputs).logits, batch).sum().backward()
                model.zero_grad()
                model.eval()
            switch(False)

        return plain

    components = ("heads", "neurons") if kind == "heads+neurons" else ()
    weights = ("*",) if kind == "weights" else ()

    def scored():
        switch(True)
        aggregate = "square" if weights else "signed"
        fitter = RelevanceFitter(model, target, "lrp", components, weights, aggregate)
        fitter.update(batch)
        switch(False)

    return scored


def lxt_runner(model, args):
    """Return functions for a plain pass and an LXT efficient pass (call `patch` in between)."""
    embedding = model.get_input_embeddings()
    batch = torch.randint(10, model.config.vocab_size, (args.batch, args.tokens))

    def run():
        embedded = embedding(batch).detach().requires_grad_()
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        labels = batch.roll(-1, 1).flatten()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()

    return run


SHAPES = {
    "tinyllama-1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
                           "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
                           "max_position_embeddings": 2048, "tie_word_embeddings": False},
    "llama-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
                     "max_position_embeddings": 4096, "tie_word_embeddings": False},
}  # fmt: skip
"""Shapes to fill with random weights."""


def load(args):
    from transformers import AutoModelForCausalLM, LlamaConfig

    if args.shape:
        torch.manual_seed(0)
        with torch.device(args.device):
            config = LlamaConfig(**SHAPES[args.shape])
            dtype = getattr(torch, args.dtype)
            return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()


def child(args):
    model = load(args)
    if args.kind == "lxt":
        # the rules of LXT as its efficient API installs them, without its attention patch, which
        # transformers 5 does not survive: the wrapper is called as tests/lrp/lxt_oracle.py does
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "lrp"))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        run = lxt_runner(model, args)
        run()
        plain = timed(run, args.rounds)
        import lxt_oracle

        lxt_oracle.patch_llama("attnlrp")
        model.set_attn_implementation("eager")
        run()
        print(json.dumps({"plain": plain, "lxt": timed(run, args.rounds), "peak": peak()}))
        return
    for parameter in model.parameters():  # a mapped file counts once it was read
        parameter.detach().sum()
    run, before = runner(args.kind, model, args), resident()
    run()
    print(json.dumps({"peak": peak(), "before": before}))


def timed(run, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of SmolLM2-135M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lxt-python", help="interpreter of an environment that has lxt")
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.shape and not args.folder:
        from excise.core.gguf import converted_gguf, embedded_gguf

        args.folder = str(converted_gguf(embedded_gguf()))
    if args.kind:
        return child(args)

    def fresh(kind, python=sys.executable, **env):
        """Run one kind in a process of its own."""
        passed = ("batch", "tokens", "rounds", "shape", "dtype", "device", "folder")
        given = {name: value for name in passed if (value := getattr(args, name)) is not None}
        options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        command = [python, __file__, *options, "--kind", kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True,
                              env={**os.environ, **env})  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    # large tensors straight from the system, so that the peak counts what is alive
    memory = {kind: fresh(kind, MALLOC_MMAP_THRESHOLD_="262144") for kind in KINDS}
    model = load(args)
    runs = {kind: runner(kind, model, args) for kind in KINDS}
    for run in runs.values():
        run()
    times = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, run in runs.items():
            times[kind] += timed(run, 1)
    scored = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.dim() == 2)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    against = {"heads+neurons": "plain", "weights": "weight gradients",
               "weights, checkpointed": "weight gradients, checkpointed"}  # fmt: skip
    print(f"{args.batch} x {args.tokens} tokens, {args.rounds} rounds, "
          f"{psutil.cpu_count()} cores, model {mib(size)}, "
          f"float32 copy of the scored weights {mib(4 * scored)}")  # fmt: skip
    print(f"{'':32} {'seconds':>9} {'peak':>10} {'before':>10} {'pass':>10}")
    for kind in KINDS:
        before, most = memory[kind]["before"], memory[kind]["peak"]
        line = (f"{kind:32} {statistics.median(times[kind]):9.3f} {mib(most):>10} "
                f"{mib(before):>10} {mib(most - before):>10}")  # fmt: skip
        if base := against.get(kind):
            ratios = sorted(a / b for a, b in zip(times[kind], times[base], strict=True))
            line += (f"   {statistics.median(ratios):.2f} x {base}"
                     f" (rounds {ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
        print(line, flush=True)
    del model, runs, run
    if args.lxt_python:
        found = fresh("lxt", args.lxt_python)
        ratio = statistics.median(found["lxt"]) / statistics.median(found["plain"])
        print(f"LXT efficient: {ratio:.2f} x its own plain pass, peak {mib(found['peak'])}")
    return None


def mib(n):
    return f"{n / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
