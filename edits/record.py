"""What an edited model's folder says about itself: its edits, and how to undo them.

The tensors of such a folder are always *the base, scaled by the recorded edits*: never an edit on
top of rounded values. The base can be had back entry by entry, so the record can be checked against
the base's digest in each edit.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import ExciseError, first_line
from ..core.files.artefact import SCHEMA, versions
from ..core.files.json_text import json_text
from ..core.files.reading import read_json
from ..core.files.schema import Kind, check, whole
from ..core.provenance import EDITS, SEEN
from .changes import Change
from .checkpoint import Checkpoint, as_bytes
from .compose import compose
from .edit import Edit


RECORD = "excise-edits.json"
"""File in the folder of an edited model: digests of its edits."""
UNDO = "undo.safetensors"

_DIGEST = Kind("a digest", lambda v: isinstance(v, str) and bool(re.fullmatch("[0-9a-f]{64}", v)))
SHAPE = {"schema": whole(), "base": _DIGEST, "edits": [_DIGEST], "undo": _DIGEST}
"""What that file has to say."""


@dataclass(frozen=True)
class State:
    """A checkpoint, and what was done to it."""

    checkpoint: Checkpoint
    edits: tuple[Edit, ...] = ()
    """In the order in which they were applied; it does not matter."""
    undo: Mapping[str, Tensor] = field(default_factory=dict)
    """The base's values of all entries that the edits touch, by tensor, by ascending index."""

    @classmethod
    def of(cls, folder: str | Path) -> "State":
        """Read a model folder, edited or not.

        Raises:
            ExciseError: No model, or a damaged record.
        """
        checkpoint = Checkpoint.of(folder)
        path, parts = checkpoint.folder / RECORD, checkpoint.folder / EDITS
        if not path.exists():
            return cls(checkpoint)
        damaged = f"the record {path} is damaged or cannot be read, so make the edited model again"
        try:
            record = read_json(path)
            check(record, SHAPE, RECORD)
            schema, base, digests = record["schema"], record["base"], record["edits"]
            folders = [parts / digest[:12] for digest in digests]
            content = (parts / UNDO).read_bytes()
            if hashlib.sha256(content).hexdigest() != record["undo"]:
                raise ValueError("the undo data was changed")
            undo = load(content)
        except (ExciseError, OSError, ValueError, SafetensorError) as error:
            raise ExciseError(f"{damaged}: {first_line(error)}") from error
        if schema != SCHEMA:
            raise ExciseError(
                f"{path} has schema {schema!r}, not {SCHEMA}: use the excise that wrote it"
            )
        edits = tuple(Edit.from_pretrained(folder) for folder in folders)
        found = {edit.base["digest"] for edit in edits}
        if found != {base} or [edit.digest for edit in edits] != digests:
            raise ExciseError(f"{damaged}: other edits are in {parts}")
        return cls(checkpoint, edits, undo)


@dataclass(frozen=True)
class Examined:
    """The base as it is read out of a folder."""

    sha256: Mapping[str, str]
    """Of every tensor's bytes, with edited entries put back."""
    wrong: tuple[str, ...]
    """Tensors whose edited entries are not what the edits make of the base."""


def examine(state: State) -> Examined:
    """Hash a checkpoint as it was before its edits, one tensor at a time."""
    checkpoint = state.checkpoint
    planned = tensor_changes(checkpoint, state.edits)
    hashes, wrong = {}, []
    for name in checkpoint.tensors:
        if name not in planned:
            hashes[name] = checkpoint.sha256(name)
            continue
        values = checkpoint.read(name)
        original = original_of(state, name, planned[name], values)
        new = planned[name].apply(original)
        if as_bytes(values[planned[name].indices]) != as_bytes(new):
            wrong.append(name)
        values[planned[name].indices] = original
        hashes[name] = hashlib.sha256(as_bytes(values)).hexdigest()
    return Examined(hashes, tuple(wrong))


def tensor_changes(checkpoint: Checkpoint, edits: Sequence[Edit]) -> dict[str, Change]:
    """Return what several edits change together, by tensor of the files.

    Raises:
        ExciseError: A conflict, or a component that the model does not have.
    """
    if not edits:
        return {}
    whole = compose(edits)
    planned = whole.changes(checkpoint.layout(bool(whole.heads)))
    return {name[len(checkpoint.prefix) :]: change for name, change in planned.items()}


def original_of(state: State, name: str, change: Change, values: Tensor) -> Tensor:
    """Return the base's values of the touched entries of a tensor, read as `values`.

    Raises:
        ExciseError: The undo data does not have them.
    """
    original = state.undo.get(name, values[:0])
    if original.dtype != values.dtype or original.shape != change.indices.shape:
        raise ExciseError(
            f"the undo data of {state.checkpoint.folder} does not fit {name}: edit the base again"
        )
    return original


def write_record(
    folder: Path,
    edits: Sequence[Edit],
    undo: Mapping[str, Tensor],
) -> None:
    """Write the record of an edited model into its (temporary) folder.

    Of an edit's files what it has seen goes with it, and the card stays behind.
    """
    (folder / EDITS).mkdir()
    for edit in edits:
        part = folder / EDITS / edit.digest[:12]
        kept = {SEEN: edit.files[SEEN]} if SEEN in edit.files else {}
        replace(edit, files=kept).save_pretrained(part)
    content = save(dict(undo))
    (folder / EDITS / UNDO).write_bytes(content)
    record = {
        "schema": SCHEMA,
        "base": edits[0].base["digest"],
        "edits": [edit.digest for edit in edits],
        "undo": hashlib.sha256(content).hexdigest(),
        "versions": versions(),
    }
    (folder / RECORD).write_text(json_text(record, indent=2) + "\n")
