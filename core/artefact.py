"""Artefacts on disk: folders written whole or not at all, never a pickle."""

import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import psutil
from safetensors import SafetensorError

from .errors import ExciseError, shown
from .reading import as_path, read_json
from .schema import Shape, check


if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
"""Version of the folder layout; readers refuse newer ones."""

_SCRATCH = "excise-scratch"
"""Begins the names of scratch folders, by which those of killed runs are known."""


def versions() -> dict[str, str]:
    """Return the versions of what decides a result: Python and the main packages."""
    found = {"python": sys.version.split()[0]}
    for package in ("excise", "torch", "transformers", "accelerate", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_output(path: str | Path, overwrite: bool) -> None:
    """Refuse an output path that would lose something, before any work is done.

    First cleans up after killed runs: see `_sweep`.

    Raises:
        ExciseError: The path exists and may not be replaced, or its parent is no folder.
    """
    path = Path(path)
    _sweep(path)
    if path.exists() and not overwrite:
        raise ExciseError(f"{path} exists: choose another name, or pass --overwrite")
    if path.is_symlink():
        raise ExciseError(f"{path} is a link: name the folder it leads to")
    if path.exists() and not (path / "config.json").is_file():
        raise ExciseError(f"{path} is no model or excise folder, so it is not overwritten")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ExciseError(f"{parent} is a file: outputs need a folder there")


@contextmanager
def whole_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well.

    The temporary folder lies beside the target and is renamed, so that a killed run leaves either
    nothing or all; an exception removes it. An overwritten folder is moved aside first and put
    back if the rename fails.

    Args:
        path: The folder to make.
        overwrite: Whether an existing model or excise folder may be replaced.

    Raises:
        ExciseError: The path is taken, or the disk is full or refuses.
    """
    path = Path(path).absolute()
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        if overwrite and path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        reason = getattr(error, "strerror", None) or error
        raise ExciseError(f"{path} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """Give an empty folder inside another for the length of a block.

    What killed runs left there goes first.

    Args:
        parent: A folder on a disk with room.

    Raises:
        ExciseError: It is no folder, or the disk is full or refuses.
    """
    parent = Path(parent).absolute()
    if not parent.is_dir():
        raise ExciseError(f"no folder at {parent}: give one on a disk with room")
    _sweep(parent / _SCRATCH, drawn=r"\w+\.")
    temporary: str | None = None
    try:
        temporary = mkdtemp(f".{os.getpid()}.part", f".{_SCRATCH}.", parent)
        yield Path(temporary)
    except OSError as error:
        raise ExciseError(f"{parent} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _sweep(path: Path, drawn: str = "") -> None:
    """Remove what killed runs left beside a path; put back what one was about to replace.

    Args:
        path: An output. One whose name goes on after a dot is another one.
        drawn: Pattern of what stands between its name and the process.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.{drawn}([0-9]+)\.(part|old)")
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        match = name.fullmatch(left.name)
        if not match or psutil.pid_exists(int(match[1])):
            continue
        if match[2] == "old" and not path.exists():
            left.rename(path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def write_artefact(
    path: str | Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: "Mapping[str, Tensor]",
    readme: str,
    overwrite: bool = False,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a folder of `config.json`, `<kind>.safetensors` and `README.md`.

    Args:
        path: The folder to make.
        kind: What it is, as in "relevance".
        config: JSON values; schema version, kind, package versions and time are added.
        tensors: By name; stored contiguous on the CPU.
        readme: Markdown for a human who finds the folder.
        overwrite: Whether an existing folder may be replaced.
        more: Further text files, by name.
    """
    from safetensors.torch import save_file

    head = {
        "schema": SCHEMA,
        "kind": kind,
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with whole_folder(path, overwrite) as folder:
        (folder / "config.json").write_text(json.dumps({**head, **config}, indent=2) + "\n")
        contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, folder / f"{kind}.safetensors")
        for name, text in {"README.md": readme, **(more or {})}.items():
            (folder / name).write_text(text, encoding="utf-8")


def read_artefact(
    path: str | Path, kind: str, shape: Shape | None = None
) -> "tuple[dict[str, Any], dict[str, Tensor]]":
    """Read such a folder back.

    Args:
        path: The folder.
        kind: What it must be.
        shape: What its config must hold; see `schema`.

    Raises:
        ExciseError: No such folder, another kind, a newer schema, or a broken file.
    """
    from safetensors.torch import load_file

    config = read_config(path)
    if config.get("kind") != kind:
        found = shown(config.get("kind") or f"a {config.get('model_type', 'model')} checkpoint")[
            1:-1
        ]
        raise ExciseError(f"{path} holds {found}, and {kind} is needed")
    schema = config.get("schema")
    if type(schema) is not int or schema > SCHEMA:
        raise ExciseError(
            f"{path} has schema {shown(schema)} and this excise reads up to {SCHEMA}: upgrade"
        )
    if shape is not None:
        with damage(path):
            check(config, shape, "config.json")
    try:
        return config, load_file(Path(path) / f"{kind}.safetensors")
    except (OSError, SafetensorError) as error:
        raise ExciseError(f"{path} is damaged ({error}): make it again") from error


@contextmanager
def damage(path: str | Path) -> Iterator[None]:
    """Say of everything that a check of an artefact finds whose fault it is, and the way out.

    Raises:
        ExciseError: As inside, with the folder.
    """
    try:
        yield
    except ExciseError as error:
        raise ExciseError(f"{path} is damaged ({error}): make or get it again") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the `config.json` of an artefact or model folder.

    Raises:
        ExciseError: No folder, no config, or no JSON in it.
    """
    path = as_path(path)
    if not path.is_dir():
        raise ExciseError(f"no folder at {path}: give the folder that a verb wrote with -o")
    try:
        config = read_json(path / "config.json")
    except ExciseError as error:
        raise ExciseError(f"{path} has no readable config.json: {error}") from error
    if not isinstance(config, dict):
        raise ExciseError(f"{path} has no readable config.json: it holds no JSON object")
    return config
