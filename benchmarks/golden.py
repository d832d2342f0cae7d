"""Golden values: what a dozen commands compute, to be compared after every refactoring.

    python benchmarks/golden.py smollm2 --record before.json     (some 20 minutes)
    python benchmarks/golden.py smollm2 --compare before.json

`tests/test_golden.py` does the same with tiny models of both families, whose values are in
`tests/golden.json`; `EXCISE_RECORD=1 pytest tests/test_golden.py` writes them anew. A change of
these values needs its reason in the commit that changes them.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file


Values = dict[str, list[float]]

QUICK = ["--samples", "8", "--controls", "2", "--allow-failing", "--batch-size", "8"]
TEXT = ["--calibration", "{files}/text.txt", "--samples", "6", "--length", "24"]
CORRECT = ["--undesired", "{files}/bad.txt", "--general", "{files}/general.txt", "--perplexity",
           "{files}/text.txt", "--window", "16", "--windows", "16", "--sizes", "1,4", "--factor",
           "0", "--budget", "perplexity=90%", "--controls", "3", "--task", "ioi",
           "--task-samples", "8", "--min-samples", "5"]  # fmt: skip

COMMANDS: dict[str, list[str]] = {
    "score": ["score", "{model}", "--prompts", "{files}/prompts.jsonl", "--weights", "*"],
    "score-square": ["score", "{model}", "--text", "{files}/text.txt", "--samples", "4",
                     "--length", "24", "--method", "gradient-x-activation", "--weights", "*",
                     "--aggregate", "square"],
    "circuit-nodes": ["circuit", "{model}", "--prompts", "{files}/prompts.jsonl", *QUICK],
    "circuit-edges": ["circuit", "{model}", "--prompts", "{files}/prompts.jsonl", "--edges",
                      "--size", "20", "--method", "deeplift", *QUICK],
    "prune-best": ["prune", "{model}", "--sparsity", "0.5", *TEXT],
    "prune-wanda": ["prune", "{model}", "--sparsity", "0.5", "--recipe", "wanda", *TEXT],
    "prune-neurons": ["prune", "{model}", "--components", "neurons", "--sparsity", "0.25", *TEXT],
    "prune-heads": ["prune", "{model}", "--relevance", "{work}/score", "--components", "heads",
                    "--zero", "--sparsity", "0.5"],
    "eval": ["eval", "{model}", "{work}/prune-heads", "--perplexity", "{files}/text.txt",
             "--window", "16", "--limit", "12", "--task", "ioi", "--samples", "16",
             "--repetition", "--max-empty", "1", "--no-cache"],
    "correct": ["correct", "{model}", *CORRECT],
    "correct-planted": ["correct", "{planted}", *CORRECT, "--undesired", "{files}/david.jsonl"],
    "apply": ["apply", "{planted}", "{work}/correct-planted"],
    "revert": ["revert", "{work}/apply"],
}  # fmt: skip
"""By name: what is run, with `-o {work}/NAME --json` behind it."""

LEFT_OUT = (
    "seconds",
    "peak",
    "environment",
    "curves",
    "models",
    "perplexity",
    "repetition",
    "tasks",
)
"""Keys of JSON that are not compared: costs, and what stands under another key once more."""


def run(
    invoke: Callable[..., str], model: str, files: Path, work: Path, planted: Path | None = None
) -> dict[str, Values]:
    """Run every command and sum up what each has written.

    Args:
        invoke: Runs `excise` with arguments and returns its standard output.
        model: Name or folder of a model.
        files: Folder with `prompts.jsonl`, `text.txt`, `bad.txt` and `general.txt`; with
            `david.jsonl` where there is a planted model.
        work: Folder in which the outputs go.
        planted: A model with a behaviour in one neuron; without one, what needs it is left out.

    Returns:
        By command, and by tensor or number: the values that stand for it.
    """
    found = {}
    places = {"model": model, "files": files, "work": work, "planted": planted}
    for name, arguments in COMMANDS.items():
        if planted is None and any("planted" in argument for argument in arguments):
            continue
        if planted is None and name == "revert":
            continue
        asked = [argument.format(**places) for argument in arguments]
        printed = invoke(*asked, "-o", str(work / name), "--json")
        values = dict(tensors(work / name)) if (work / name).exists() else {}
        if name.startswith(("circuit", "eval", "correct")):
            values |= dict(numbers(json.loads(printed)))
        found[name] = values
    return found


def tensors(folder: Path) -> Iterator[tuple[str, list[float]]]:
    """Sum up every tensor of a folder as its size, its norm and a projection, in float64."""
    for path in sorted(folder.rglob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            values = tensor.double().reshape(-1)
            waves = torch.arange(len(values), dtype=torch.float64).mul(0.7).cos()
            where = f"{path.relative_to(folder)} {name}"
            yield where, [len(values), float(values.norm()), float(values @ waves)]


def numbers(content: Any, path: str = "") -> Iterator[tuple[str, list[float]]]:
    """Yield the measured values of a JSON output, by their path."""
    if isinstance(content, dict):
        for key, value in content.items():
            if path or key not in LEFT_OUT:
                yield from numbers(value, f"{path}.{key}" if path else key)
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from numbers(value, f"{path}.{index}")
    elif isinstance(content, float) and math.isfinite(content):
        yield path, [content]


def differences(before: dict[str, Values], after: dict[str, Values], within: float) -> list[str]:
    """Name every value that is not what it was.

    Args:
        before: What was recorded.
        after: What was found now.
        within: Largest difference that is let pass, as a share of the tensor's norm or of the
            number.
    """
    said = []
    for command in sorted({*before, *after}):
        old, new = before.get(command), after.get(command)
        if old is None or new is None:
            said.append(f"{command}: {'not run' if new is None else 'not recorded'}")
            continue
        for name in sorted({*old, *new}):
            one, other = old.get(name), new.get(name)
            if (
                one is None
                or other is None
                or any(
                    abs(a - b) > within * max(abs(one[-2 if len(one) > 1 else 0]), 1e-3)
                    for a, b in zip(one, other, strict=True)
                )
            ):
                said.append(f"{command}, {name}: {one} became {other}")
    return said


def rounded(found: dict[str, Values]) -> dict[str, Values]:
    """Return values with nine digits, to be written down."""
    return {
        command: {name: [float(f"{v:.9g}") for v in row] for name, row in values.items()}
        for command, values in found.items()
    }


def write(path: Path, found: Any) -> None:
    """Write values as JSON, a line for each command."""
    text = json.dumps(found, indent=2)
    path.write_text(re.sub(r"\n {6,}| *\n {4}(?=[}\]])", "", text) + "\n")


def own_files(folder: Path) -> Path:
    """Write the texts and prompts that a real model is run with."""
    from excise.core.documents import builtin_text

    names = ["Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma"]
    rows = [
        {"clean": f"When {one} and {other} went to the store, {other} gave a drink to",
         "counterfactual": f"When {one} and {other} went to the store, {one} gave a drink to",
         "answer": one, "wrong": other}
        for one, other in zip(names, [*names[1:], names[0]], strict=True)
    ]  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = builtin_text()
    (folder / "text.txt").write_text(text[:60_000])
    lines = [line for line in text[60_000:].split("\n") if len(line.split()) > 8]
    (folder / "bad.txt").write_text("\n".join(line.upper() for line in lines[:40]))
    (folder / "general.txt").write_text("\n".join(lines[100:200]))
    return folder


def main() -> None:
    """Record or compare."""
    from click.testing import CliRunner
    from excise.cli.main import group

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--within", type=float, default=1e-6)
    given = parser.parse_args()

    def invoke(*arguments: str) -> str:
        print(" ".join(arguments[:2]), file=sys.stderr, flush=True)
        done = CliRunner().invoke(group, list(arguments))
        if done.exit_code not in (0, 3):
            sys.exit(f"{' '.join(arguments)}: exit code {done.exit_code}\n{done.output}")
        return done.stdout

    with TemporaryDirectory() as folder:
        (work := Path(folder) / "work").mkdir()
        found = rounded(run(invoke, given.model, own_files(Path(folder)), work))
    if given.record:
        write(given.record, found)
    if given.compare:
        said = differences(json.loads(given.compare.read_text()), found, given.within)
        print("\n".join(said) or "nothing changed")
        sys.exit(bool(said))


if __name__ == "__main__":
    main()
