"""Edits on checkpoints: bind, apply, revert; streamed, and undone bit by bit."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import ExciseError, shown
from ..core.files.artefact import versions
from ..core.files.output import check_output, whole_folder
from ..core.loading import model_folder
from ..core.provenance import EDITS, Seen
from .checkpoint import Checkpoint, digest, fingerprint
from .edit import Edit
from .record import RECORD, State, original_of, tensor_changes, write_record
from .verify import check_base, edit_of, lines_of, listed, sound


_TWINS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
"""Endings of files that may hold the same weights once more, unedited."""


@dataclass(frozen=True)
class EditedModel:
    """A folder that `apply_edit` or `revert_edit` has written: a model with the edits in it."""

    folder: Path
    edits: tuple[Edit, ...]
    """All that are in it now."""
    tensors: tuple[str, ...]
    """Those that differ from the folder that was read."""
    left_out: tuple[str, ...]
    """Files that were not copied: they may hold the old weights in another form."""

    def __str__(self) -> str:
        edits = list(map(str, self.edits)) or ["no edit is left: this is the base"]
        return "\n".join([*edits, f"{len(self.tensors)} tensors changed; written to {self.folder}"])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "output": str(self.folder),
            "edits": [edit.digest for edit in self.edits],
            "tensors": list(self.tensors),
            "left_out": list(self.left_out),
        }


def bind(
    edit: Edit,
    folder: str | Path,
    name: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    seen: Seen | None = None,
) -> Edit:
    """Tie an edit to the checkpoint it was made for.

    `config["base"]` gets: `name`; `family`; `digest`, the SHA-256 over all tensors (a line
    `name dtype shape sha256` each, sorted by name); `fingerprints`, 8 digits per line, so that a
    checkpoint that is not the base can be told where it differs; `dtypes`; `touched`, the SHA-256
    of each tensor that changes.

    Args:
        edit: Components and factors.
        folder: The checkpoint; for an edited one, the base of its edits is meant.
        name: What a human calls it; the folder's name if None.
        recipe: How the components were found; JSON values.
        evidence: What was measured; JSON values.
        seen: Texts that found or chose it, as in `Seen.by(samples)`; None is what the edit says
            already, which is `unknown` for one made by hand.

    Raises:
        ExciseError: An empty edit, components that the model lacks, or a damaged folder.
    """
    if not edit.n_components and not edit.biases:
        raise ExciseError("this edit changes nothing: give it a head, a neuron or a weight")
    state = State.of(folder)
    examined = sound(state)
    checkpoint = state.checkpoint
    touched = tensor_changes(checkpoint, [replace(edit, config={})])
    lines, own = lines_of(checkpoint, examined), checkpoint.folder.resolve().name
    base = {
        "name": name or (state.edits[0].base["name"] if state.edits else own),
        "family": checkpoint.config["model_type"],
        "digest": digest(lines),
        "dtypes": sorted({stored.dtype for stored in checkpoint.tensors.values()}),
        "fingerprints": "".join(map(fingerprint, lines.values())),
        "touched": {name: examined.sha256[name] for name in touched},
    }
    config = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "base": base,
        "recipe": dict(recipe or {}),
        "evidence": dict(evidence or {}),
    }
    bound = replace(edit, config=config)
    return bound if seen is None else bound.with_seen(seen)


def apply_edit(
    model: str | Path,
    edit: Edit | str | Path | Sequence[Edit | str | Path],
    output: str | Path,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> EditedModel:
    """Write an edited copy of a checkpoint; other files are copied byte for byte.

    Args:
        model: Folder or name of the edits' base checkpoint, or of one that edits of the same base
            are in already.
        edit: One or several, each an edit or its folder. What is known of the texts that found or
            chose it goes with it, for `excise eval`.
        output: The folder to make, which holds record and undo data, too; may be the model's own.
        revision: Branch, tag or commit of a hub id.
        overwrite: Whether it may replace an existing model folder.

    Raises:
        ExciseError: Not the edits' base, an edit that is in there already, a conflict of edits, or
            an output that is taken.
    """
    state = _state(model_folder(str(model), revision), output, overwrite)
    edits = list(map(edit_of, (edit,) if isinstance(edit, Edit | str | Path) else edit))
    for new in edits:
        if new.digest in {old.digest for old in state.edits}:
            raise ExciseError(f"edit {new.digest[:12]} is in {model} already: leave it out")
    examined = sound(state)
    for new in edits:
        check_base(state, examined, new)
    return _rewrite(state, (*state.edits, *edits), output, overwrite)


def revert_edit(
    model: str | Path,
    output: str | Path,
    edit: Edit | str | Path | None = None,
    *,
    everything: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> EditedModel:
    """Write a copy without an edit; without any, every tensor is the base's, bit by bit.

    Args:
        model: Folder or name of an edited model.
        output: The folder to make; may be the model's own.
        edit: Which one is taken out: the edit, its folder, or the beginning of its digest; the
            last one that was applied if None.
        everything: Whether to take out all edits.
        revision: Branch, tag or commit of a hub id.
        overwrite: Whether the output may replace an existing model folder.

    Raises:
        ExciseError: No such edit in the folder, or tensors that were changed since.
    """
    if edit is not None and everything:
        raise ExciseError(f"`everything` takes out every edit: give it, or {shown(str(edit))}")
    state = _state(model_folder(str(model), revision), output, overwrite)
    if not state.edits:
        raise ExciseError(f"{model} has no edits: nothing to revert")
    if edit is not None and (isinstance(edit, Edit | Path) or Path(edit).exists()):
        wanted = edit_of(edit).digest
    else:
        wanted = edit
    gone = state.edits[-1:] if wanted is None else ()
    if wanted:
        gone = [one for one in state.edits if one.digest.startswith(wanted)]
    if everything:
        gone = state.edits
    elif len(gone) != 1:
        raise ExciseError(
            f"{len(gone)} edits of {model} are named {str(wanted)[:12]}: in it are "
            f"{listed(state.edits)}"
        )
    sound(state)
    rest = tuple(one for one in state.edits if one not in gone)
    return _rewrite(state, rest, output, overwrite)


def _state(folder: str | Path, output: str | Path, overwrite: bool) -> State:
    """Read a folder, once the output is known to lose nothing: not even in place.

    Raises:
        ExciseError: As `check_output`; or a file that would be lost, or is not the folder's own.
    """
    in_place = os.path.realpath(folder) == os.path.realpath(output)
    check_output(output, overwrite, "model", () if in_place else (folder,))
    state = State.of(folder)
    _, left_out, hidden = _files(state.checkpoint)
    if in_place and (lost := [*left_out, *hidden]):
        raise ExciseError(
            f"{folder} holds {lost[0]}, which would not be in its new version: give another -o, "
            "or move it out of the folder"
        )
    return state


def _rewrite(
    state: State, edits: tuple[Edit, ...], output: str | Path, overwrite: bool
) -> EditedModel:
    """Copy a folder, with the tensors of the base scaled by the given edits."""
    checkpoint = state.checkpoint
    old, new = (tensor_changes(checkpoint, some) for some in (state.edits, edits))
    files, left_out, _ = _files(checkpoint)
    undo: dict[str, Tensor] = {}
    with whole_folder(output, overwrite, "model") as temporary:
        for file in files:
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.folder / file, temporary / file)
        for name in sorted({*old, *new}):
            values = checkpoint.read(name)
            if name in old:
                values[old[name].indices] = original_of(state, name, old[name], values)
            if name in new:
                undo[name] = values[new[name].indices]
                values[new[name].indices] = new[name].apply(undo[name])
            checkpoint.write(name, values, temporary)
        if edits:
            write_record(temporary, edits, undo)
    return EditedModel(Path(output), edits, tuple(sorted({*old, *new})), tuple(map(str, left_out)))


def _files(checkpoint: Checkpoint) -> tuple[list[Path], list[Path], list[Path]]:
    """Return which files to copy, and which not: other weights, and what is in hidden folders.

    Raises:
        ExciseError: A link to what is neither in the folder nor in the hub's cache of the model.
            Of tensors it may be one, since they are known by their hash.
    """
    copied, left_out, hidden = [], [], []
    top = checkpoint.folder.resolve()
    own = {top, top.parents[1] / "blobs"} if top.parent.name == "snapshots" else {top}
    for path in sorted(filter(Path.is_file, checkpoint.folder.rglob("*"))):
        file = path.relative_to(checkpoint.folder)
        if file.parts[0] in (RECORD, EDITS):
            continue
        if any(part.startswith(".") for part in file.parent.parts):
            hidden.append(file)
        elif str(file) in checkpoint.files:
            copied.append(file)
        elif file.suffix in _TWINS:
            left_out.append(file)
        elif own.isdisjoint(path.resolve().parents):
            raise ExciseError(
                f"{path} is a link out of the folder, which is not copied: put the file itself "
                "there, or remove the link"
            )
        else:
            copied.append(file)
    return copied, left_out, hidden
