"""Kills in the middle of writing, and edit files that are not as they were written."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.edits import seal
from excise.edits.apply import apply_edit, bind
from excise.edits.edit import Edit
from excise.edits.verify import verify_edit
from safetensors.torch import load_file, save_file


Folder = Callable[..., Path]

KILLED = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from excise.core.files.output import check_output
from excise.core.errors import ExciseError
from excise.edits.apply import apply_edit
from excise.edits.edit import Edit
from excise.edits.verify import verify_edit

base, folder, there = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "there"
one, other = (Edit.from_pretrained(folder / name) for name in ("one", "other"))
out = folder / "out"

def slowly(source, target):
    with open(source, "rb") as read, open(target, "wb") as write:
        while block := read.read(8192):
            write.write(block)
            write.flush()
            time.sleep(0.001)

def child(delay):
    pid = os.fork()
    if pid == 0:
        shutil.copyfile = slowly
        apply_edit(base, other, out, overwrite=there)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return pid, os.waitpid(pid, 0)[1]

def begin():
    shutil.rmtree(out, ignore_errors=True)
    if there:
        apply_edit(base, one, out)

begin()
started = time.perf_counter()
assert child(None)[1] == 0
whole = time.perf_counter() - started
random.seed(0)
for n in range(20):
    begin()
    pid, status = child(whole * (n + random.random()) / 20)
    half = (folder / ".out.excise.part").exists()
    try:
        check_output(out, True, "model")  # what any later run does first
        state = "nothing" if not out.exists() else "one" if verify_edit(out, one).ok else "other"
        assert state != "other" or verify_edit(out, other).ok
    except ExciseError as error:
        state = str(error)
    left = {path.name for path in folder.iterdir()} - {"one", "other", "out"}
    print(state, status == signal.SIGKILL, half, sorted(left))
"""
"""One process that forks a child per kill, so that torch is imported once."""


@pytest.mark.parametrize("there", ["there", "new"])
def test_kill_9_at_20_moments(there: str, checkpoint: Folder, tmp_path: Path):
    base = checkpoint("llama-gqa", "float32-sharded")
    bind(Edit(heads={(0, 1): 0.0}), base).save_pretrained(tmp_path / "one")
    other = bind(Edit(neurons={(i, n): 0.5 for i in (0, 1) for n in range(9)}), base)
    other.save_pretrained(tmp_path / "other")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, base, tmp_path, there], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    old = "one" if there == "there" else "nothing"
    assert len(lines) == 20
    assert {line.split()[0] for line in lines} <= {old, "other"}, lines
    assert all(line.endswith("[]") for line in lines), lines  # all else is swept up
    assert sum("True True" in line for line in lines) >= 5, lines  # killed, half-written
    assert lines[0].startswith(old)


@pytest.fixture(scope="module")
def edit_folder(checkpoint: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an edit with something of everything."""
    stack = "model.decoder.layers"
    edit = Edit(
        heads={(0, 1): 0.0, (1, 3): 0.5},
        neurons={(0, n): 0.0 for n in range(10)},
        weights={f"{stack}.0.fc1.weight": (torch.tensor([3, 9]), torch.tensor([0.0, 0.5]))},
        biases={f"{stack}.1.fc2.bias": torch.ones(32)},
    )
    path = tmp_path_factory.mktemp("edits") / "edit"
    bind(edit, checkpoint("opt"), recipe={"n": 12}, evidence={"p": 0.03}).save_pretrained(path)
    return path


def not_applied(folder: Path, base: Path, out: Path) -> str:
    """Return the one line that refuses an edit; any other exception fails the test."""
    with pytest.raises(ExciseError) as error:
        apply_edit(base, Edit.from_pretrained(folder), out)
    assert list(out.parent.iterdir()) == [folder]
    assert "\n" not in str(error.value)
    return str(error.value)


def mutated(folder: Path, n: int) -> None:
    """Change an edit's files in one of many ways, another one for each number."""
    draw = random.Random(n)
    files = sorted(folder.iterdir())
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    way = n % 6
    if way in (0, 1):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif way == 2:
        del content[draw.randrange(len(content)) :]
    elif way == 3:
        at = draw.randrange(len(content))
        content[at:at] = bytes(draw.choices(range(256), k=draw.randrange(1, 9)))
    elif way == 4:
        file.unlink()
        return
    else:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        place = draw.choice([config, config["base"], config["base"]["touched"], config["recipe"]])
        key = draw.choice(list(place))
        if draw.random() < 0.5:
            place[f"{key}_"] = place.pop(key)
        else:
            place[key] = draw.choice([None, 7, float("nan"), [], "x", {}])
        content = bytearray((json.dumps(config, indent=2) + "\n").encode())
    file.write_bytes(content)


@pytest.mark.parametrize("tens", range(10))
def test_mutated_edits(tens: int, edit_folder: Path, checkpoint: Folder, tmp_path: Path):
    for n in range(10 * tens, 10 * tens + 10):
        folder = tmp_path / "edit"
        shutil.copytree(edit_folder, folder)
        mutated(folder, n)
        not_applied(folder, checkpoint("opt"), tmp_path / "never")
        shutil.rmtree(folder)


@pytest.mark.parametrize("way", ["indent", "twice", "end"])
def test_the_same_json_in_other_bytes(
    way: str, edit_folder: Path, checkpoint: Folder, tmp_path: Path
):
    """Of two values for one key, a reader of the file may see the other one."""
    folder = tmp_path / "edit"
    shutil.copytree(edit_folder, folder)
    text = (folder / "config.json").read_text()
    other = {"indent": json.dumps(json.loads(text)), "end": text + "\n",
             "twice": text.replace('"n": 12', '"n": 13, "n": 12')}[way]  # fmt: skip
    (folder / "config.json").write_text(other)
    assert json.loads(other) == json.loads(text)
    assert other != text
    assert "checksum differs" in not_applied(folder, checkpoint("opt"), tmp_path / "never")


def resealed(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change an edit and make its checksum fit, as someone would who knows how."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "edit.safetensors")
    change(config, tensors)
    save_file(tensors, folder / "edit.safetensors")
    content, readme = (folder / "edit.safetensors").read_bytes(), (folder / "README.md").read_text()
    config["checksum"] = seal.checksum(config, content, readme)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def forgeries() -> Iterator[tuple[str, Callable[[dict[str, Any], dict[str, Any]], None], str]]:
    """Yield what a forger might do, and what the refusal says."""
    row = torch.tensor([[0, 99]], dtype=torch.int32)
    yield "layer", lambda _, t: t["heads"].fill_(2), "no layer 2"
    yield "head", lambda _, t: t["heads"].copy_(torch.tensor([[0, 1], [1, 4]])), "no head 4"
    yield "neuron", lambda _, t: t["neurons"][:1].copy_(row), "no neuron 99"
    yield "negative", lambda _, t: t["neurons"].neg_(), "-1 among the neurons"
    yield "nan", lambda _, t: t["heads.factors"].fill_(torch.nan), "nan"
    yield "infinity", lambda _, t: t["neurons.factors"].fill_(torch.inf), "inf"
    yield "huge", lambda _, t: t["neurons.factors"].fill_(1e300), "beyond float32"
    yield "float unit", lambda _, t: t.update(heads=t["heads"] + 0.5), "0.5 among the heads"
    yield "nan unit", lambda _, t: t.update(heads=t["heads"] * torch.nan), "no whole edit"
    yield "infinite unit", lambda _, t: t.update(heads=t["heads"] + torch.inf), "no whole edit"
    yield "flat units", lambda _, t: t.update(heads=t["heads"].flatten()), "no whole edit"
    yield "wide units", lambda _, t: t.update(heads=t["heads"].view(1, 4)), "no whole edit"
    yield "fewer factors", lambda _, t: t.update({"heads.factors": torch.ones(1)}), "no whole edit"
    yield "no factors", lambda _, t: t.pop("heads.factors"), "no whole edit"
    yield "no heads", lambda _, t: t.pop("heads"), "no whole edit"
    yield "more tensors", lambda _, t: t.update(x=torch.ones(1)), "tensors that no edit has"
    weights = "weights/model.decoder.layers.0.fc1.weight"
    yield "weight", lambda _, t: t[weights].fill_(768)[:1].fill_(0), "no weight 768"
    yield "weight twice", lambda _, t: t[weights].fill_(1), "there twice"
    yield "bias", lambda _, t: t.update({"biases/x": torch.ones(3)}), "adds to x"
    bias = "biases/model.decoder.layers.1.fc2.bias"
    yield "short bias", lambda _, t: t.update({bias: torch.ones(3)}), "adds 3 values"
    yield "digest", lambda c, _: c["base"].update(digest="0" * 64), "its digest differs"
    yield "fingerprints", lambda c, _: c["base"].update(fingerprints=""), "differs from the base"
    yield "touched", lambda c, _: c["base"]["touched"].update(y="z"), "y is missing"
    for key in ("digest", "fingerprints", "touched", "name", "dtypes", "family"):
        yield f"no {key}", lambda c, _, key=key: c["base"].pop(key), "is damaged"
        yield f"odd {key}", lambda c, _, key=key: c["base"].update({key: 7}), "is damaged"
    for key in ("base", "created", "recipe", "evidence"):
        yield f"no {key}", lambda c, _, key=key: c.pop(key), "is damaged"
        yield f"odd {key}", lambda c, _, key=key: c.update({key: [1]}), "is damaged"
    yield "schema", lambda c, _: c.update(schema=2), "schema 2"
    yield "kind", lambda c, _: c.update(kind="mask"), "holds mask"


FORGERIES = list(forgeries())


@pytest.mark.parametrize(
    ("change", "message"), [f[1:] for f in FORGERIES], ids=[f[0] for f in FORGERIES]
)
def test_forged_edits(
    change: Any, message: str, edit_folder: Path, checkpoint: Folder, tmp_path: Path
):
    folder = tmp_path / "edit"
    shutil.copytree(edit_folder, folder)
    resealed(folder, change)
    assert message in not_applied(folder, checkpoint("opt"), tmp_path / "never")


def test_the_edit_that_they_start_from_is_fine(
    edit_folder: Path, checkpoint: Folder, tmp_path: Path
):
    shutil.copytree(edit_folder, tmp_path / "edit")
    resealed(tmp_path / "edit", lambda config, tensors: None)
    edit = Edit.from_pretrained(tmp_path / "edit")
    apply_edit(checkpoint("opt"), edit, tmp_path / "out")
    assert verify_edit(tmp_path / "out", Edit.from_pretrained(edit_folder)).ok
    size = sum(file.stat().st_size for file in edit_folder.iterdir())
    assert size <= 16 * 1024


def test_a_full_disk(edit_folder: Path, checkpoint: Folder, tmp_path: Path, monkeypatch: Any):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ExciseError, match="out cannot be written: No space left"):
        apply_edit(checkpoint("opt"), Edit.from_pretrained(edit_folder), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
