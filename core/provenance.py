"""Which texts found or chose something: what each artefact says of it, and each folder of a model.

An artefact's JSON has, as `prompt_hashes`, a list of `text_hash`; or `none` where it was made from
weights alone; or `unknown`, also as a member of the list where some of the texts are not known. A
list that is empty, absent or of an older excise says nothing, which is `unknown`, too.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExciseError
from .files.artefact import damage
from .files.reading import read_json
from .files.schema import TEXT, check
from .texts import DIGITS


if TYPE_CHECKING:
    from .data import Sample

KEY = "prompt_hashes"
NONE, UNKNOWN = "none", "unknown"

RECIPE = "excise.json"
"""File of the recipe in a model's folder."""
EDITS = "excise-edits"
"""Folder of the edits in an edited model's folder, and of the undo data. Not next to the weights,
since some servers load every `*.safetensors` they find there."""
SEEN = "seen.json"
"""File of an edit: hashes of all texts that found or chose it."""

_HASH = re.compile(rf"[0-9a-f]{{{DIGITS}}}([0-9A-Za-z_-]{{4}})*")
_ANEW = "make it again, or name the texts with --attribution"


@dataclass(frozen=True)
class Seen:
    """Texts that found or chose something, by which `excise eval` knows them again."""

    hashes: frozenset[str] = frozenset()
    unknown: str = ""
    """Why there are more, which are not known; empty where these are all."""

    @classmethod
    def by(cls, samples: "Iterable[Sample]") -> "Seen":
        """Return the texts of samples; unknown where one does not know what it is of."""
        samples = list(samples)
        hashes = frozenset(one for sample in samples for one in sample.known_by)
        if all(sample.known_by for sample in samples):
            return cls(hashes)
        return cls(hashes, "its samples do not say which text they are of")

    @classmethod
    def read(cls, config: Mapping[str, Any], of: str) -> "Seen":
        """Read what an artefact says.

        Args:
            config: Its JSON values.
            of: What it is, for messages.

        Raises:
            ExciseError: Something else stands there.
        """
        value = config.get(KEY)
        if value == NONE:
            return cls()
        if value in (None, UNKNOWN, []):
            return cls(unknown=f"{of} does not say which texts it was made with: {_ANEW}")
        listed: list[Any] = value if isinstance(value, list) else [0]
        texts = [one for one in listed if isinstance(one, str)]
        if texts != listed or not all(one == UNKNOWN or _HASH.fullmatch(one) for one in texts):
            raise ExciseError(f"{of}: its {KEY} cannot be read: {_ANEW}")
        hashes = frozenset(texts) - {UNKNOWN}
        if any(len(one) == DIGITS for one in hashes):
            return cls(hashes, f"the {KEY} of {of} are of an older excise: {_ANEW}")
        if UNKNOWN in texts:
            return cls(hashes, f"{of} does not know all texts it was made with: {_ANEW}")
        return cls(hashes)

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(self.hashes | other.hashes, self.unknown or other.unknown)

    def to_json(self) -> list[str] | str:
        """Return what `read` reads."""
        if not self.hashes:
            return UNKNOWN if self.unknown else NONE
        return sorted(self.hashes) + [UNKNOWN] * bool(self.unknown)


NOT_TOLD = Seen(unknown="no texts are known to have chosen an edit: name them with --attribution")


def seen_in(folder: str | Path) -> Seen | None:
    """Return what found or chose what is in a folder, a model's or an artefact's, edits included.

    Args:
        folder: Any name; what is no folder has no record.

    Returns:
        None where excise wrote nothing there.

    Raises:
        ExciseError: A record that cannot be read, or was changed.
    """
    found = None
    for path, record in _records(Path(folder)):
        part = _of_edit(path, record) if record.get("kind") == "edit" else None
        part = part or Seen.read(record, str(path))
        found = part if found is None else found | part
    return found


def _records(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if folder == Path():  # a model without a name
        return
    for part in (folder, *sorted(folder.glob(f"{EDITS}/*"))):
        for path in (part / RECIPE, part / "config.json"):
            record = record_of(path) if path.is_file() else {}
            if (path.name == RECIPE and path.is_file()) or {"schema", "kind"} <= record.keys():
                yield path.parent, record


def _of_edit(folder: Path, config: Mapping[str, Any]) -> Seen:
    """Return what an edit has seen: its sealed list."""
    name, files = f"edit {folder}", config.get("files")
    if not isinstance(files, dict):
        return Seen(unknown=f"{name} is of an older excise, which sealed no list of texts: {_ANEW}")
    if SEEN not in files:
        return Seen.read({}, name)
    check_listed(folder, {SEEN: files[SEEN]})
    return Seen.read(record_of(folder / SEEN), name)


def check_listed(folder: Path, files: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the contents of a folder's files, if they are what they were when it was sealed.

    Args:
        folder: Of an artefact.
        files: SHA-256 by name.

    Raises:
        ExciseError: One is missing or was changed.
    """
    with damage(folder):
        check(files, {"*": TEXT}, "its list of files")
    found = {}
    for name, sha256 in files.items():
        if Path(name).name != name:
            raise ExciseError(f"{folder} lists a file {name!r:.80}, not in it: get it again")
        try:
            found[name] = (folder / name).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ExciseError(f"{folder} lacks its {name} ({reason}): get it again") from error
        if hashlib.sha256(found[name]).hexdigest() != sha256:
            raise ExciseError(
                f"{folder} was changed after it was written ({name} differs): get it again"
            )
    return found


def record_of(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ExciseError: It cannot be read, or holds another value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ExciseError(f"{path} cannot be read: it holds no JSON object")
    return content
