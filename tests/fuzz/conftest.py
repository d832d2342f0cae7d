"""Real artefacts of tiny models, ways to spoil them, and what must hold whatever is in them."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise.cli.main import group
from hypothesis import HealthCheck, Phase, settings
from safetensors.torch import load_file, save_file


Draw = random.Random

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 0.5, -0.0, 1e308, 10**18, 10**290, -(2**63), "", "x", "two",
    "\x1b[2J<img src=x onerror=alert(1)>|`", "a" * 5000, "../../x", "\u0663", [], [[]], {}, {"": 1},
    [0, 0, 0, 0], [1, 1, 1, 1], [10**6, 10**6, 1, 24], [2048, 2048, 2048, 1], [-1, -8], ["x"],
    {"value": None, "ci": [1]}, float("inf"), float("nan"),
)  # fmt: skip
RAW = (
    b"", b"\n", b"[", b"[" * 100_000, b'{"a":' * 3000, b"9" * 5000, b'"\\ud800"', b"\xff\xfe",
    b"\0" * 20, b"null", b"[]", b"{}", b'{"a":1, "a":1}', b"a\tb\n" + b"x" * 140_000,
    b"a: &a [1]\nb: *a", b"1e999", b"-", b'{"clean": "x", "answer": {}}', "²٣".encode(),
)  # fmt: skip


def tree(*folders: Path) -> dict[str, str | None]:
    """Return a hash of every file below folders."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for folder in folders
        for path in folder.rglob("*")
    }


@dataclass
class Site:
    """Where artefacts are, and where spoiled copies of them go."""

    folder: Path
    work: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def spoiled(self, name: str, draw: Draw) -> Path:
        """Return a copy of a file or folder with something wrong in it."""
        source, target = self.folder / name, self.work / name
        self.clear()
        target.parent.mkdir(exist_ok=True)
        if source.is_file():
            target.write_bytes(spoil_bytes(source.read_bytes(), draw))
            return target
        shutil.copytree(source, target)
        files = sorted(
            path for path in target.rglob("*")
            if path.suffix in (".json", ".safetensors") and "tokenizer" not in path.name
        )  # fmt: skip
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            path = draw.choice(files)
            if path.is_file():
                spoil_file(path, draw)
        if (target / "edit.safetensors").exists() and draw.random() < 0.8:
            seal_again(target)
        return target

    def clear(self) -> None:
        """Remove what the last case left."""
        for left in self.work.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def call(self, *words: Any, outputs: tuple[Path, ...] = ()) -> int:
        """Run a command; check what must hold; return its exit code."""
        before = tree(self.folder, self.work)
        result = CliRunner().invoke(group, list(map(str, words)), color=True)
        where = " ".join(map(str, words))[:600]
        if not isinstance(result.exception, SystemExit | None):
            raise AssertionError(f"traceback of: {where}") from result.exception
        code = result.exit_code
        assert code in (0, 1, 2, 3, 130), (code, where)
        said = [line for line in result.stderr.splitlines() if line.startswith("excise: ")]
        if code:
            assert len(said) == 1, (where, result.stderr)
            assert len(said[0]) < 3000, (where, len(said[0]))
        assert not any(mark in result.output for mark in ("\x1b", "\x9b", "\u202e")), where
        result.output.encode()
        after = tree(self.folder, self.work)
        changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
        allowed = tuple(map(str, outputs)) if code in (0, 3) else ()
        touched = [p for p in changed if not p.startswith(allowed)] if allowed else changed
        assert not touched, (where, sorted(touched))
        return code


def spoil_file(path: Path, draw: Draw) -> None:
    """Spoil one file: its bytes, or what it means."""
    kind = draw.random()
    if kind < 0.1:
        path.write_bytes(spoil_bytes(path.read_bytes(), draw))
    elif kind < 0.13:
        path.unlink()
    elif path.suffix == ".json":
        try:
            content = json.loads(path.read_text())
        except (ValueError, RecursionError):
            return
        for _ in range(draw.choice((1, 1, 2, 3))):
            content = spoil_value(content, draw)
        path.write_text(json.dumps(content, indent=2) + "\n")
    else:
        try:
            tensors = load_file(path)
        except Exception:  # spoiled before
            return
        for _ in range(draw.choice((1, 1, 2))):
            spoil_tensors(tensors, draw)
        save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path)


def spoil_bytes(content: bytes, draw: Draw) -> bytes:
    """Cut, flip, double or replace bytes."""
    at = draw.randrange(len(content) + 1)
    return draw.choice((
        lambda: content[:at],
        lambda: content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + draw.choice(RAW) + content[at:],
        lambda: draw.choice(RAW),
        lambda: content + b"\n" + draw.choice(RAW),
        lambda: content * 2,
    ))()  # fmt: skip


def spoil_value(content: Any, draw: Draw) -> Any:
    """Change one value somewhere in JSON: swap its type, drop it, rename it, double it."""
    owner: Any = None
    key: Any = None
    inner = content
    while isinstance(inner, dict | list) and inner and (owner is None or draw.random() < 0.8):
        owner = inner
        key = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
        inner = inner[key]
    if owner is None or draw.random() < 0.02:
        return deepcopy(draw.choice(JUNK))
    what = draw.random()
    if what < 0.2:
        del owner[key]
    elif what < 0.3 and isinstance(owner, dict):
        owner[f"{key}x"] = owner.pop(key)
    elif what < 0.4 and isinstance(owner, list):
        owner.append(deepcopy(inner))
    elif what < 0.5 and isinstance(inner, int | float):
        owner[key] = inner * draw.choice((-1, 0, 2, 1000, 10**9)) + draw.choice((0, 1, 0.5))
    else:
        owner[key] = deepcopy(draw.choice(JUNK))
    return content


def spoil_tensors(tensors: dict[str, torch.Tensor], draw: Draw) -> None:
    """Rename, drop, add, reshape, retype or poison one tensor."""
    name = draw.choice(sorted(tensors)) if tensors else ""
    if not name or draw.random() < 0.1:
        tensors[draw.choice(("heads", "samples/x", "weights/", "/", "nodes/mean", "x"))] = (
            torch.ones(draw.choice(((), (0,), (3,), (2, 4), (1, 1, 1))))
        )
        return
    tensor = tensors.pop(name)
    flat = tensor.flatten()
    changed = draw.choice((
        lambda: None,
        lambda: flat,
        lambda: tensor[None],
        lambda: flat[:0],
        lambda: flat[: len(flat) // 2],
        lambda: flat.repeat(2),
        lambda: tensor.t() if tensor.ndim == 2 else flat[:1].reshape(()) if len(flat) else flat,
        lambda: tensor.to(draw.choice((torch.float64, torch.float16, torch.int64, torch.int8,
                                       torch.bool, torch.uint8))),
        lambda: torch.full_like(tensor, draw.choice((0, 1, 100))),
        lambda: tensor.float() * draw.choice((float("nan"), float("inf"), 1e30, -1)),
        lambda: torch.full(tensor.shape, draw.choice((-1, 2**31, 2**62, -(2**63)))),
    ))()  # fmt: skip
    if changed is not None:
        tensors[name if draw.random() < 0.8 else f"{name}x"] = changed
    elif draw.random() < 0.5:
        tensors[f"{name}/y"] = tensor


def seal_again(folder: Path) -> None:
    """Give a spoiled edit a checksum that fits."""
    from excise.edits.seal import checksum

    try:
        config = json.loads((folder / "config.json").read_text())
        tensors = (folder / "edit.safetensors").read_bytes()
        config["checksum"] = checksum(config, tensors, (folder / "README.md").read_text())
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    except Exception:  # nothing that could be sealed is left
        return


@pytest.fixture(scope="session")
def many() -> Callable[[float], Any]:
    """Return `many(share)`, settings: its share of 500 cases, or of as many as EXCISE_FUZZ says."""
    total = int(os.environ.get("EXCISE_FUZZ", "500"))
    return lambda share: settings(
        max_examples=max(1, round(total * share)),
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate),  # a seed is enough to see a case again
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
    )


@pytest.fixture(scope="session")
def site(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]
) -> Iterator[Site]:
    """Make one artefact of every kind."""
    from excise.edits.apply import apply_edit, bind
    from excise.edits.edit import Edit
    from excise.tasks.ioi import ioi_prompts
    from transformers import AutoTokenizer

    folder, work = (tmp_path_factory.mktemp(name) for name in ("site", "work"))
    found = Site(folder, work)
    os.environ["EXCISE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    model = folder / "model"
    shutil.copytree(tiny_folder("llama-gqa"), model)
    prompts = ioi_prompts(AutoTokenizer.from_pretrained(model), 12)
    rows = [json.dumps(vars(prompt)) for prompt in prompts]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "text.txt").write_text(". ".join(prompt.clean for prompt in prompts * 6))
    pairs = [{"undesired": p.clean, "neutral": p.counterfactual, "prompt": ""} for p in prompts]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "pairs.tsv").write_text(
        "".join(f"{pair['undesired']}\t{pair['neutral']}\n" for pair in pairs)
    )
    (folder / "policy.yaml").write_text(
        "confidence: 95 %\nmin_samples: 4\nperplexity: {max_increase: 1 %, equivalence: 95 %}\n"
        "tasks:\n  ioi: {min: 0.5}\n"
    )
    calls = [
        ("score", model, "--prompts", folder / "prompts.jsonl", "-o", folder / "relevance"),
        *(
            ("circuit", model, "--prompts", folder / "prompts.jsonl", "--allow-failing", *level,
             "--controls", "1", "-o", folder / name)
            for name, level in (
                ("nodes", ("--size", "4")), ("edges", ("--edges", "--size", "9")),
                ("neurons", ("--neurons", "--size", "9")),
            )
        ),
        ("prune", model, "--relevance", folder / "relevance", "--components", "heads", "--zero",
         "--sparsity", "0.3", "-o", folder / "pruned"),
        ("eval", model, "--perplexity", folder / "text.txt", "--window", "32", "--limit", "4",
         "--no-cache", "-o", folder / "report"),
        ("show", folder / "edges", "--eap-ig", folder / "scores.json"),
    ]  # fmt: skip
    for words in calls:
        result = CliRunner().invoke(group, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    edit = Edit(heads={(0, 1): 0.0}, neurons={(1, 2): 0.5, (1, 3): -1.0})
    edit = bind(edit, model, "llama", {"method": "x"}, {"drop": 0.4})
    edit.save_pretrained(folder / "edit")
    apply_edit(str(model), edit, folder / "edited")
    yield found
    os.environ.pop("EXCISE_CACHE", None)
