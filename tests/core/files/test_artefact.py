"""Folders are written whole or not at all."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.files.artefact import read_artefact, write_artefact
from excise.core.files.output import whole_folder


TENSORS = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2])}


def write(path: Path, overwrite: bool = False, **config: Any) -> None:
    write_artefact(path, "thing", config, TENSORS, "# A thing\n", overwrite)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_read(tmp_path: Path):
    write(tmp_path / "deep" / "out", n=3)
    config, tensors = read_artefact(tmp_path / "deep" / "out", "thing")
    assert config["n"] == 3
    assert config["kind"] == "thing"
    assert {"python", "torch", "transformers"} <= config["versions"].keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert left(tmp_path / "deep" / "out") == ["README.md", "config.json", "thing.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [False, True])
def test_an_exception_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], there: bool
):
    if there:
        write(tmp_path / "out", n=1)
    with suppress(error), whole_folder(tmp_path / "out", True, "thing") as folder:
        (folder / "half").write_text("half")
        assert folder.parent == tmp_path
        raise error
    assert left(tmp_path) == (["out"] if there else [])
    if there:
        assert read_artefact(tmp_path / "out", "thing")[0]["n"] == 1


def test_overwriting(tmp_path: Path):
    write(tmp_path / "out", n=1)
    with pytest.raises(ExciseError, match="out exists"):
        write(tmp_path / "out", n=2)
    write(tmp_path / "out", overwrite=True, n=3)
    assert read_artefact(tmp_path / "out", "thing")[0]["n"] == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(ExciseError, match="nothing that excise knows"):
            write(tmp_path / name, overwrite=True)
    for name in ("file/out", "file/deep/out"):
        with pytest.raises(ExciseError, match="file is a file"):
            write(tmp_path / name)
    assert left(tmp_path) == ["file", "mine", "out"]
    assert left(tmp_path / "mine") == ["thesis.txt"]


KILLED = """
import sys
from excise.core.files.output import whole_folder
with whole_folder(sys.argv[1], True, "thing") as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("there", [False, True])
def test_kill_9_while_writing(tmp_path: Path, there: bool):
    out = tmp_path / "out[1]"  # a name that is a glob pattern, too
    if there:
        write(out, n=1)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert out.exists() == there
    assert ".out[1].excise.part" in left(tmp_path)
    write(out, overwrite=there, n=2)
    assert left(tmp_path) == ["out[1]"]
    assert read_artefact(out, "thing")[0]["n"] == 2


def test_killed_between_two_renames(tmp_path: Path):
    write(tmp_path / "out", n=1)
    (tmp_path / "out").rename(tmp_path / ".out.excise.old")
    with pytest.raises(ExciseError, match="out exists"):  # it is back
        write(tmp_path / "out", n=2)
    assert read_artefact(tmp_path / "out", "thing")[0]["n"] == 1
    assert left(tmp_path) == ["out"]


def test_a_longer_name_is_another_output(tmp_path: Path):
    write(tmp_path / "out.v2", n=1)
    (tmp_path / "out.v2").rename(tmp_path / ".out.v2.excise.old")  # killed, its only copy
    write(tmp_path / "out", n=2)
    write(tmp_path / "out", n=3, overwrite=True)
    with pytest.raises(ExciseError, match="v2 exists"):
        write(tmp_path / "out.v2")
    assert read_artefact(tmp_path / "out.v2", "thing")[0]["n"] == 1
    assert left(tmp_path) == ["out", "out.v2"]


def test_what_others_write_is_left_alone(tmp_path: Path):
    names = [".out.part", ".out.notes.old", ".out.progress", ".other.excise.part"]
    for name in names:
        (tmp_path / name).mkdir()
    write(tmp_path / "out")
    assert left(tmp_path) == sorted([*names, "out"])


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("owner", ["safetensors.torch.save_file", "pathlib.Path.replace"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, there: bool):
    if there:
        write(tmp_path / "out", n=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, full)
    with pytest.raises(ExciseError, match=r"out cannot be written: No space left on device"):
        write(tmp_path / "out", overwrite=True, n=2)
    assert left(tmp_path) == (["out"] if there else [])


@pytest.mark.parametrize("raised", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_the_old_folder_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
):
    write(tmp_path / "out", n=1)
    replace = Path.replace

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise raised
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises((ExciseError, KeyboardInterrupt)) as seen:
        write(tmp_path / "out", overwrite=True, n=2)
    assert str(raised.args[-1] if raised.args else "") in str(seen.value)
    assert read_artefact(tmp_path / "out", "thing")[0]["n"] == 1
    assert left(tmp_path) == ["out"]


def test_what_cannot_be_read_is_named(tmp_path: Path):
    out = tmp_path / "out"
    write(out)
    with pytest.raises(ExciseError, match="holds thing, and circuit is needed"):
        read_artefact(out, "circuit")
    with pytest.raises(ExciseError, match="no folder at"):
        read_artefact(tmp_path / "none", "thing")
    weights = (out / "thing.safetensors").read_bytes()
    for broken in (weights[:-4], b"", b"\xff" * 64):
        (out / "thing.safetensors").write_bytes(broken)
        with pytest.raises(ExciseError, match="damaged"):
            read_artefact(out, "thing")
    config = json.loads((out / "config.json").read_text())
    for schema in (99, None, "1"):
        (out / "config.json").write_text(json.dumps({**config, "schema": schema}))
        with pytest.raises(ExciseError, match="schema"):
            read_artefact(out, "thing")
    for text in (b"", b"[]", b"{", b"\xff"):
        (out / "config.json").write_bytes(text)
        with pytest.raises(ExciseError, match=r"no readable config\.json"):
            read_artefact(out, "thing")
    shutil.rmtree(out)
