"""Is this edit in this model, and is the model otherwise untouched?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError
from ..core.loading import model_folder
from .checkpoint import Checkpoint, digest, fingerprint
from .edit import Edit
from .record import Examined, State, examine


@dataclass(frozen=True)
class Verification:
    """Whether a folder is one base checkpoint with its edits, and nothing else.

    `ok` is the verdict, `reasons` says why not, and `print` shows both in one line.
    """

    folder: Path
    edits: tuple[Edit, ...]
    """As recorded in the folder."""
    base: str
    """Digest of the checkpoint that is left when the edits are undone."""
    differing: Mapping[str, str]
    """What is wrong with each tensor that is not as it should be."""
    problems: tuple[str, ...]
    """What else is wrong."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong, a sentence each; empty if nothing is."""
        wrong = (f"{name} {what}" for name, what in self.differing.items())
        return (*self.problems, *wrong)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "folder": str(self.folder),
            "holds": self.ok,
            "base": self.base,
            "edits": [edit.digest for edit in self.edits],
            "differing": dict(self.differing),
            "problems": list(self.problems),
        }

    def __str__(self) -> str:
        if self.ok:
            return f"{self.folder} is the base {self.base[:12]} with {listed(self.edits)} alone"
        first = self.reasons[: len(self.problems) + 3]
        rest = len(self.reasons) - len(first)
        more = [f"{rest} tensors more"] if rest else []
        return f"{self.folder} does not verify: {'; '.join([*first, *more])}"


def verify_edit(
    model: str | Path, edit: Edit | str | Path | None = None, *, revision: str | None = None
) -> Verification:
    """Check that a model is its base with its edits, tensor by tensor, and nothing else.

    Undoes the recorded edits in memory, a tensor at a time, and compares what is left with the
    digest of the base in the edit. An edit given is the witness: it need not be the folder's copy.
    Tensors are compared; configs and tokenizer are not.

    Args:
        model: Folder or name of an edited model.
        edit: One that has to be in it, or its folder; the edits that are recorded in the model
            if None.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ExciseError: No model, no record and no edit to check, or a damaged record.
    """
    witness = edit_of(edit) if edit is not None else None
    state = State.of(model_folder(str(model), revision))
    if not state.edits and witness is None:
        raise ExciseError(f"{model} has no record of edits: give the edit that should be in it")
    witness = witness or state.edits[0]
    examined = examine(state)
    differing, problems = differences(state, examined, witness)
    base = digest(lines_of(state.checkpoint, examined))
    if base == witness.base["digest"] and not state.edits:
        problems.append(f"it is the base {base[:12]} itself, without edit {witness.digest[:12]}")
    elif witness.digest not in {one.digest for one in state.edits}:
        inside = listed(state.edits) if state.edits else "no record of any edit"
        problems.append(f"edit {witness.digest[:12]} is not in it: it has {inside}")
    differing.update(dict.fromkeys(examined.wrong, "is not what the edits make of the base"))
    return Verification(
        state.checkpoint.folder, state.edits, base, dict(sorted(differing.items())), tuple(problems)
    )


def edit_of(edit: Edit | str | Path) -> Edit:
    """Return an edit, read from its folder if it is not one already.

    Raises:
        ExciseError: The folder holds no edit, or one that is not as it was written.
    """
    return edit if isinstance(edit, Edit) else Edit.from_pretrained(edit)


def sound(state: State) -> Examined:
    """Examine a folder, edited or not, before something is made of it.

    Raises:
        ExciseError: One with edits is no longer its base with its edits alone.
    """
    examined = examine(state)
    wrong = [f"{name} was changed after the edit" for name in examined.wrong]
    if state.edits:
        differing, problems = differences(state, examined, state.edits[0])
        wrong += [f"{name} {what}" for name, what in differing.items()] + problems
    if wrong:
        raise ExciseError(
            f"{state.checkpoint.folder} is no longer its base with its edits: {wrong[0]}; "
            "edit the base again"
        )
    return examined


def check_base(state: State, examined: Examined, edit: Edit) -> None:
    """Refuse a checkpoint that is not an edit's base.

    Raises:
        ExciseError: Names the first tensor that differs.
    """
    differing, problems = differences(state, examined, edit)
    if not (differing or problems):
        return
    if differing:
        first, what = next(iter(differing.items()))
        problems = [f"{first} {what}, the first of {len(differing)}"]
    dtypes = sorted({stored.dtype for stored in state.checkpoint.tensors.values()})
    if dtypes != edit.base["dtypes"]:
        wanted = ", ".join(edit.base["dtypes"])
        problems.append(f"tensors are stored as {', '.join(dtypes)}, and as {wanted} in the base")
    raise ExciseError(
        f"{state.checkpoint.folder} is not the checkpoint of edit {edit.digest[:12]}, which is "
        f"{edit.base['name']}: {'; '.join(problems)}"
    )


def differences(state: State, examined: Examined, edit: Edit) -> tuple[dict[str, str], list[str]]:
    """Compare a folder, its edits undone, with an edit's base.

    Returns:
        What is wrong with each tensor that differs; and what cannot be told of a tensor by name.
    """
    base, lines = edit.base, lines_of(state.checkpoint, examined)
    known = base["fingerprints"]
    prints = {known[at : at + 8] for at in range(0, len(known), 8)}
    found = {name for name, line in lines.items() if fingerprint(line) not in prints}
    found |= {name for name, sha in base["touched"].items() if examined.sha256.get(name) != sha}
    differing = {
        name: "differs from the base" if name in lines else "is missing" for name in sorted(found)
    }
    if differing or digest(lines) == base["digest"]:
        return differing, []
    lacking = len(known) // 8 - len(lines)
    return {}, [f"{lacking} tensors are missing" if lacking else "its digest differs"]


def lines_of(checkpoint: Checkpoint, examined: Examined) -> dict[str, str]:
    """Return the line of each tensor of the base, from which its digest is made."""
    return {name: checkpoint.line(name, sha) for name, sha in examined.sha256.items()}


def listed(edits: Sequence[Edit]) -> str:
    """Name edits by the beginnings of their digests."""
    words = "edit" if len(edits) == 1 else "edits"
    return f"{words} {', '.join(one.digest[:12] for one in edits)}"
