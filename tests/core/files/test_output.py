"""Outputs: nothing of another kind, nothing that is read, no link, no device is ever lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.core.export import save_model
from excise.core.files import output
from excise.core.files.artefact import read_artefact, read_config, write_artefact
from excise.core.files.output import FILES, check_output, whole_file, whole_folder
from excise.core.loading import load_model, model_folder
from filelock import FileLock


Folder = Callable[[str], Path]

PAGE = FILES["page"]


def artefact(path: Path, kind: str = "relevance", n: int = 1) -> Path:
    write_artefact(path, kind, {"n": n}, {}, "# It\n")
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_same_kind_is_replaced(tmp_path: Path):
    places = {kind: artefact(tmp_path / kind, kind) for kind in ("relevance", "edit")}
    places["model"] = tmp_path / "model"
    places["model"].mkdir()
    (places["model"] / "config.json").write_text('{"model_type": "llama"}')
    for kind, beginning in FILES.items():
        places[kind] = tmp_path / kind
        places[kind].write_text(f"{beginning} ...")
    for kind, place in places.items():
        for wanted in places:
            if wanted == kind:
                check_output(place, True, wanted)
                continue
            with pytest.raises(ExciseError, match=f"holds {kind} .*only {wanted} may be replaced"):
                check_output(place, True, wanted)
        with pytest.raises(ExciseError, match="exists: choose another name, or pass --overwrite"):
            check_output(place, False, kind)
    assert left(tmp_path) == sorted(places)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"kind": 7}', '{"kind": ' + "[" * 9999])
def test_what_is_not_known_is_not_replaced(tmp_path: Path, config: str):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(config)
    with pytest.raises(ExciseError, match="nothing that excise knows"):
        check_output(tmp_path / "out", True, "relevance")


def test_what_is_read_is_not_replaced(tmp_path: Path):
    top, inner = artefact(tmp_path / "top"), artefact(tmp_path / "top" / "inner")
    (tmp_path / "link").symlink_to(inner)
    for read in (top, inner, tmp_path / "link", top / ".." / "top", top / "config.json"):
        with pytest.raises(ExciseError, match=f"not overwritten, since {read} is read"):
            check_output(top, True, "relevance", [read])
    for other in ("gpt2", "", "x" * 5000, tmp_path, tmp_path / "none"):
        check_output(top, True, "relevance", [other])
    check_output(inner, True, "relevance", [top / "config.json"])


def test_dots_and_links_are_resolved_first(tmp_path: Path):
    artefact(tmp_path / "copy")
    write_artefact(tmp_path / "copy" / ".." / "copy", "relevance", {"n": 2}, {}, "", True)
    (tmp_path / "link").symlink_to("copy")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ExciseError, match="link exists"):
        check_output(tmp_path / "link", False, "relevance")
    assert read_config(tmp_path / "copy")["n"] == 2
    write_artefact(tmp_path / "link", "relevance", {"n": 3}, {}, "", True)
    assert read_config(tmp_path / "copy")["n"] == 3
    with pytest.raises(ExciseError, match="leads in a circle"):
        check_output(tmp_path / "circle", True, "relevance")
    assert left(tmp_path) == ["circle", "copy", "link"]
    assert (tmp_path / "link").is_symlink()


def test_a_link_to_a_file_stays_one(tmp_path: Path):
    (tmp_path / "page.html").write_text(f"{PAGE} old")
    (tmp_path / "link.html").symlink_to("page.html")
    whole_file(tmp_path / "link.html", f"{PAGE} new", True, "page")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "page.html").read_text() == f"{PAGE} new"
    assert left(tmp_path) == ["link.html", "page.html"]


def test_devices_and_pipes_stay(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), Path("/dev/full")):
        for overwrite in (False, True):
            with pytest.raises(ExciseError, match="choose another name"):
                whole_file(path, PAGE, overwrite, "page")
    assert (tmp_path / "pipe").is_fifo()
    assert Path(os.devnull).is_char_device()


NAMES = {"x" * 256: "too long", "x" * 250: "cannot be written: File name too long",
         "bad\udcff": "udcff", "a\0b": "no name of a file", "a/" * 2500: "too long"}  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=["256", "250", "bytes", "zero", "deep"])
@pytest.mark.parametrize("within", ["", "new/"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str, within: str):
    with pytest.raises(ExciseError, match=NAMES[name]) as error:
        check_output(f"{tmp_path}/{within}{name}", False, "relevance")
    str(error.value).encode()
    assert not left(tmp_path)


def refusing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    for call in ("mkdir", "open", "fsync"):
        monkeypatch.setattr(os, call, refuse)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_refuses_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    refusing(monkeypatch, number)
    with pytest.raises(ExciseError, match=f"new/out cannot be written: {os.strerror(number)}"):
        check_output(tmp_path / "new" / "out", False, "relevance")
    monkeypatch.undo()
    assert not left(tmp_path)


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_under_a_file(tmp_path: Path, there: bool):
    """Half a page is on the disk when it refuses the other half."""
    path = tmp_path / "page.html"
    if there:
        path.write_text(f"{PAGE} old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(ExciseError, match=r"page\.html cannot be written: File too large"):
            whole_file(path, PAGE + "x" * 100_000, True, "page")
        with (
            pytest.raises(ExciseError, match="out cannot be written: File too large"),
            whole_folder(tmp_path / "out", False, "thing") as folder,
        ):
            whole_file(folder / "page.html", PAGE + "x" * 100_000, False, "page")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path) == (["page.html"] if there else [])
    assert not there or path.read_text() == f"{PAGE} old"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a disk of Linux's kernel")
def test_a_disk_of_the_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "_PATIENCE", 0.1)
    with pytest.raises(ExciseError, match="/proc/self/x cannot be written: "):
        check_output("/proc/self/x", False, "thing")


def test_a_mounted_disk_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artefact(tmp_path / "out")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "out")
    with pytest.raises(ExciseError, match="name a folder in it"):
        check_output(tmp_path / "out", True, "relevance")


def moved_aside(path: Path) -> Path:
    """Leave a folder as a kill between the two renames of an overwrite does."""
    aside = path.with_name(f".{path.name}.excise.old")
    path.rename(aside)
    (path.with_name(f".{path.name}.excise.part")).mkdir()
    (path.with_name(f".{path.name}.excise.lock")).touch()
    return aside


BETWEEN = """
import os, signal, sys
from pathlib import Path
from excise.core.files.output import whole_folder
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
with whole_folder(sys.argv[1], True, "relevance") as folder:
    (folder / "config.json").write_text("{}")
"""


def test_kill_9_between_two_renames(tmp_path: Path):
    artefact(tmp_path / "out")
    killed = subprocess.run([sys.executable, "-c", BETWEEN, tmp_path / "out"], check=False)
    assert killed.returncode == -9
    assert left(tmp_path) == [f".out.excise.{what}" for what in ("lock", "old", "part")]
    assert read_config(tmp_path / "out")["n"] == 1
    assert left(tmp_path) == ["out"]


def test_readers_find_what_a_killed_run_moved_aside(tmp_path: Path, tiny_folder: Folder):
    artefact(tmp_path / "out")
    for read in (read_config, lambda path: read_artefact(path, "relevance")[0]):
        moved_aside(tmp_path / "out")
        assert read(tmp_path / "out")["n"] == 1
        assert left(tmp_path) == ["out"]
    shutil.copytree(tiny_folder("opt"), tmp_path / "model")
    for read in (load_model, model_folder):
        moved_aside(tmp_path / "model")
        read(str(tmp_path / "model"))
        assert left(tmp_path) == ["model", "out"]
    for name in ("gpt2", "", "/", ".", "a\0b", "x" * 5000, tmp_path / "none"):
        assert output.settled(name) == name


def test_a_disk_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    moved_aside(artefact(tmp_path / "out"))
    refusing(monkeypatch, errno.EROFS)
    monkeypatch.setattr(output, "_locked", lambda *_: os.mkdir("refused"))  # noqa: PTH102
    assert output.settled(tmp_path / "out") == tmp_path / ".out.excise.old"


WRITING = """
import sys
from excise.core.files.output import whole_folder
with whole_folder(sys.argv[1], False, "thing") as folder:
    (folder / "config.json").write_text('{"kind": "thing"}')
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_two_runs_with_one_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever holds the lock is alive, and on which host does not matter: no process is looked up.

    A process of another host, or of another container, has a number that means nothing here.
    """
    out = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", WRITING, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"writing\n"
    monkeypatch.setattr(output, "_PATIENCE", 0.2)
    with pytest.raises(ExciseError, match=f"another run writes {out}"):
        check_output(out, False, "thing")
    assert (tmp_path / ".out.excise.part" / "config.json").is_file()
    other.communicate()
    assert other.returncode == 0
    assert read_config(out) == {"kind": "thing"}
    with pytest.raises(ExciseError, match="out exists"):
        check_output(out, False, "thing")
    assert left(tmp_path) == ["out"]


def test_progress_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = output.progress_of(tmp_path / "x" / ".." / "out")
    assert folder == tmp_path / ".out.progress"
    folder.mkdir()
    (folder / "half").touch()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as if killed before
    output.remove_progress(folder)
    monkeypatch.undo()
    assert left(tmp_path) == ["..out.progress.excise.part"]
    check_output(tmp_path / "out", False, "thing")
    output.remove_progress(folder)
    output.remove_progress(None)
    assert not left(tmp_path)


def test_somebody_who_uses_the_progress_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".out.progress").mkdir()
    monkeypatch.setattr(output, "_PATIENCE", 0.1)
    with FileLock(tmp_path / "..out.progress.excise.lock"):
        output.remove_progress(tmp_path / ".out.progress")
    assert (tmp_path / ".out.progress").is_dir()


def test_a_model_is_not_written_over_itself(tmp_path: Path, tiny_folder: Folder):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("opt"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    loaded = load_model(str(folder))
    with pytest.raises(ExciseError, match="is read"):
        save_model(loaded, folder, {}, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    shutil.copytree(folder, tmp_path / "other")
    save_model(loaded, tmp_path / "other", {"n": 1}, overwrite=True)
    assert json.loads((tmp_path / "other" / "excise.json").read_text()) == {
        "n": 1, "prompt_hashes": "unknown"
    }  # fmt: skip
