"""Artefacts on disk: folders of a config, tensors and a page for people; never a pickle."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..errors import ExciseError, shown
from .json_text import json_text
from .output import settled, whole_folder
from .reading import as_path, read_json
from .schema import Shape, check


if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
"""Version of the folder layout; readers refuse newer ones."""


def versions() -> dict[str, str]:
    """Return the versions of what decides a result: Python and the main packages."""
    found = {"python": sys.version.split()[0]}
    for package in ("excise", "torch", "transformers", "accelerate", "bitsandbytes"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
        overwrite: Whether an existing folder of this kind may be replaced.
        more: Further text files, by name.
    """
    from safetensors.torch import save_file

    head = {
        "schema": SCHEMA,
        "kind": kind,
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    with whole_folder(path, overwrite, kind) as folder:
        (folder / "config.json").write_text(json_text({**head, **config}, indent=2) + "\n")
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

    path = settled(path)
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
    path = as_path(settled(path))
    if not path.is_dir():
        raise ExciseError(f"no folder at {path}: give the folder that a verb wrote with -o")
    try:
        config = read_json(path / "config.json")
    except ExciseError as error:
        raise ExciseError(f"{path} has no readable config.json: {error}") from error
    if not isinstance(config, dict):
        raise ExciseError(f"{path} has no readable config.json: it holds no JSON object")
    return config
