"""Is our perplexity the one that others report? Two protocols against two references.

    python benchmarks/perplexity_parity.py wikitext2_raw_test.txt
    python benchmarks/perplexity_parity.py FILE --limit-windows 2 --limit-documents 2  # a try
    python benchmarks/perplexity_parity.py FILE --lm-eval-python PYTHON

(a) `window` against a loop over plain transformers, as in the code of GPTQ, SparseGPT and Wanda.
(b) `document` against lm-eval's own `simple_evaluate`, in a process of its own
that loads the same folder: a local `loglikelihood_rolling` task over the same documents (WikiText's
articles). lm-eval puts BOS (else EOS) before a document; with `add_bos_token=False` it adds nothing
else. Left to itself it encodes with the tokenizer's special tokens, so that with one that adds BOS
(Llama 2, OPT; not SmolLM2) each document has two, and the second is scored.

Ends with 1 if a number differs by more than 1e-4 of its value.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from excise.core.documents import read_documents
from excise.core.gguf import converted_gguf, embedded_gguf
from excise.core.loading import Loaded, LoadOptions, load_model
from excise.eval.perplexity import Perplexity


TOLERANCE = 1e-4

TASK = """\
task: parity
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""

CHILD = """\
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

tasks, model, batch_size, device = json.loads(sys.argv[1])
found = simple_evaluate(
    "hf", model, ["parity"], batch_size=batch_size, device=device, bootstrap_iters=0,
    log_samples=False, task_manager=TaskManager(include_path=tasks, include_defaults=False),
)
print(json.dumps(found["results"]["parity"]))
"""


def plain_loop(model, tokenizer, text, window, limit):
    """Measure perplexity over windows with nothing but transformers."""
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids
    n = ids.shape[1] // window if limit is None else min(limit, ids.shape[1] // window)
    total = 0.0
    for i in range(n):
        batch = ids[:, i * window : (i + 1) * window].to(model.device)
        with torch.no_grad():
            total += model(batch, labels=batch).loss.item() * (window - 1)
    return math.exp(total / (n * (window - 1)))


def ours(loaded, metric):
    plan = metric.plan(loaded)
    rows = dict(metric.rows(loaded, plan, range(len(plan.units)), progress=True))
    (outcome,) = metric.outcomes(loaded, plan, [rows[i] for i in range(len(rows))])
    print(f"{outcome.protocol}, {len(plan.units)} units")
    return outcome.measures


def lm_eval(folder, documents, args):
    """Ask lm-eval in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "documents.jsonl")
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        Path(place, "parity.yaml").write_text(TASK.format(file=json.dumps(str(file))))
        model = {"pretrained": folder, "max_length": args.window, "dtype": "float32",
                 "add_bos_token": False}  # fmt: skip
        given = json.dumps([place, model, max(1, 2048 // args.window), args.device])
        command = [args.lm_eval_python, "-c", CHILD, given]
        apart = {**os.environ, "HF_DATASETS_CACHE": str(Path(place, "datasets"))}
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=apart)
    if done.returncode:
        raise SystemExit(f"lm-eval failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(name, measure, reference, seconds):
    off = abs(measure.value / reference - 1)
    mark = "" if off <= TOLERANCE else "   DIFFERS"
    print(f"  {name:16} {measure.value:.6f}   reference {reference:.6f}   off by {off:.1e} "
          f"({seconds[0]:.0f} s, reference {seconds[1]:.0f} s){mark}")  # fmt: skip
    return not mark


def timed(function, *given):
    start = time.perf_counter()
    return function(*given), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a text file; WikiText's headings split it into documents")
    parser.add_argument("--model", default="smollm2", help="smollm2, or a folder")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--limit-windows", type=int)
    parser.add_argument("--limit-documents", type=int)
    parser.add_argument("--lm-eval-python", default=sys.executable)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    smollm2 = args.model == "smollm2"
    folder = str(converted_gguf(embedded_gguf()) if smollm2 else Path(args.model).resolve())
    loaded: Loaded = load_model(folder, LoadOptions(dtype="float32", device=args.device))
    (text,) = read_documents(args.text)
    documents = read_documents(args.text, split=True)[: args.limit_documents]

    windows = Perplexity([text], "window", args.window, args.limit_windows)
    found, here = timed(ours, loaded, windows)
    plain, there = timed(
        plain_loop, loaded.model, loaded.tokenizer, text, args.window, args.limit_windows
    )
    right = [compare("perplexity", found["token_perplexity"], plain, (here, there))]

    rolling = replace(windows, documents=documents, protocol="document", limit=None)
    found, here = timed(ours, loaded, rolling)
    theirs, there = timed(lm_eval, folder, documents, args)
    for name in ("word_perplexity", "bits_per_byte"):
        right.append(compare(name, found[name], theirs[f"{name},none"], (here, there)))
    return 0 if all(right) else 1


if __name__ == "__main__":
    raise SystemExit(main())
