"""Where results go: written whole or not at all, and nothing of the user's is lost for them.

One rule for every folder and every file: what exists is replaced only if the user says so, only
if it is of the same kind, and never if the command reads it. Names are resolved first, so a link's
target is meant by the link. Whoever writes holds a lock beside the output, which ends with the
process, on whatever host it runs; so what killed runs left is known, and nobody else's is touched.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from ..errors import ExciseError, UnwritableError
from .reading import as_path, read_json


FILES = {"page": "<!doctype html", "drawing": "<svg", "graph": "digraph", "EAP-IG file": '{"cfg"'}
"""Kinds of single files, by how they begin."""

_PATIENCE, _LONGEST = 10.0, 3600.0
"""Seconds to wait for another run that writes the same: before the work, and after it."""

_SCRATCH, _ENDING = "excise-scratch", ".excise."
"""Begins the names of scratch folders; and what names beside an output have behind its own."""


def check_output(
    path: str | Path, overwrite: bool, kind: str, reads: Iterable[str | Path] = ()
) -> None:
    """Refuse an output that would lose something, or cannot be written, before any work is done.

    First cleans up after killed runs. Then makes and removes a folder where the output will be.

    Args:
        path: A folder or file.
        overwrite: Whether the user allows to replace what is there.
        kind: What will be written: a kind of artefact, "model", or one of `FILES`.
        reads: What the command reads; names that are no paths do no harm.

    Raises:
        ExciseError: The path is taken and may not be replaced, or cannot be written.
    """
    place = _resolved(path)
    there = next((one for one in place.parents if os.path.lexists(one)), place)
    if not there.is_dir():
        raise ExciseError(f"{there} is a file: outputs need a folder there")
    with _told_of(path):
        if any(os.path.lexists(_beside(progress_of(place), what)) for what in ("part", "lock")):
            with _locked(progress_of(place), _PATIENCE):
                _sweep(progress_of(place))
        _check_taken(path, place, overwrite, kind, reads)
        new = next(one for one in (place, *place.parents) if one.parent == there)
        with _locked(new, _PATIENCE):
            _sweep(new)
            _check_taken(path, place, overwrite, kind, reads)  # it may have been put back
            try:  # all that will be needed, and its names
                _part(_part(new) / place.relative_to(there)).mkdir(parents=True)
            finally:
                _sweep(new)


@contextmanager
def whole_folder(
    path: str | Path, overwrite: bool, kind: str, reads: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends well.

    The temporary folder lies beside the target and is renamed, so that a killed run leaves either
    nothing or all; an exception removes it. An overwritten folder is moved aside first and put
    back if the rename fails; if there is no time for that, readers do it: see `settled`.

    Raises:
        ExciseError: As `check_output`, whose arguments these are; or the disk is full or refuses.
    """
    with _whole(path, overwrite, kind, reads) as part:
        part.mkdir()
        yield part


def whole_file(
    path: str | Path, text: str, overwrite: bool, kind: str, reads: Iterable[str | Path] = ()
) -> None:
    """Write a text file so that a killed run leaves the old file or the new one, never half of it.

    Raises:
        ExciseError: As `check_output`, whose arguments these are; or the disk is full or refuses.
    """
    content = text.encode("utf-8")
    with _whole(path, overwrite, kind, reads) as part, part.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def scratch_folder(parent: str | Path) -> Iterator[Path]:
    """Give an empty folder inside another for the length of a block.

    What killed runs left there goes first.

    Args:
        parent: A folder on a disk with room.

    Raises:
        ExciseError: It is no folder, or the disk is full or refuses.
    """
    place = _resolved(parent)
    if not place.is_dir():
        raise ExciseError(f"no folder at {parent}: give one on a disk with room")
    with _told_of(parent):
        for left in place.glob(f".{_SCRATCH}.*{_ENDING}part"):
            one = place / left.name[1 : -len(f"{_ENDING}part")]
            with suppress(ExciseError), _locked(one, 0):  # else somebody works there
                _sweep(one)
        own = place / f"{_SCRATCH}.{secrets.token_hex(4)}"
        with _locked(own, _PATIENCE):
            try:
                _part(own).mkdir()
                yield _part(own)
            finally:
                _sweep(own)


def settled(path: str | Path) -> str | Path:
    """Return where a folder is to be read: under its own name, which it gets back if need be.

    A run that was killed while it replaced the folder may have moved it aside and no further.

    Args:
        path: A folder, or any other name, which is returned as it is.
    """
    try:
        place = _resolved(path)
        if os.path.lexists(place) or not _old(place).is_dir():
            return path
    except (ExciseError, OSError):  # no name that a file can have: the reader refuses it
        return path
    try:
        with _locked(place, _PATIENCE):
            _sweep(place)
    except ExciseError:  # of a run that is at it
        return path
    except OSError:  # a disk that can be read only
        return _old(place)
    return path


def progress_of(output: str | Path) -> Path:
    """Return the folder beside an output in which `--resume` keeps what is found."""
    place = _resolved(output)
    return place.with_name(f".{place.name}.progress") if place.name else place


def remove_progress(folder: str | Path | None) -> None:
    """Remove what `--resume` kept, once the result is safe; None is nothing.

    It is renamed first, to a name that `check_output` sweeps up after a kill: half a folder under
    its own name would stop the next run.
    """
    if folder is None or not Path(folder).is_dir():
        return
    place = _resolved(folder)
    with suppress(OSError, ExciseError), _locked(place, _PATIENCE):  # what counts is written
        _sweep(place)
        place.rename(_part(place))
        _sweep(place)


def kind_of(path: Path) -> str | None:
    """Return what an output holds: a kind of artefact, "model", one of `FILES`, or None."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                beginning = file.read(max(map(len, FILES.values())))
            return next((k for k, b in FILES.items() if beginning.startswith(b.encode())), None)
        config = read_json(path / "config.json")
    except (ExciseError, OSError):
        return None
    if not isinstance(config, dict):
        return None
    kind = config.get("kind", "model" if "model_type" in config else None)
    return kind if isinstance(kind, str) else None


@contextmanager
def _whole(
    path: str | Path, overwrite: bool, kind: str, reads: Iterable[str | Path]
) -> Iterator[Path]:
    """Give a name beside a path; what is there when the block ends well is renamed to the path."""
    check_output(path, overwrite, kind, reads)
    place = _resolved(path)
    with _told_of(path, SafetensorError):  # it has its own error for a full disk
        place.parent.mkdir(parents=True, exist_ok=True)
        with _locked(place, _LONGEST):
            _sweep(place)
            try:
                yield _part(place)
                _check_taken(path, place, overwrite, kind, reads)  # time has passed
                if place.is_dir():
                    place.rename(_old(place))
                _part(place).replace(place)
            finally:
                _sweep(place)


def _check_taken(
    path: str | Path, place: Path, overwrite: bool, kind: str, reads: Iterable[str | Path]
) -> None:
    """Hold what is at a place against the one rule."""
    if not os.path.lexists(place):
        return
    if place.is_symlink():
        raise ExciseError(f"{path} is a link that leads in a circle: choose another name")
    if not overwrite:
        raise ExciseError(f"{path} exists: choose another name, or pass --overwrite")
    if os.path.ismount(place):
        raise ExciseError(f"{path} is a disk and cannot be replaced: name a folder in it")
    found = kind_of(place)
    if found != kind:
        raise ExciseError(
            f"{path} holds {found or 'nothing that excise knows'} and is not overwritten, since "
            f"only {kind} may be replaced here: choose another name"
        )
    for read in filter(os.path.exists, reads):
        within = Path(os.path.realpath(read))
        if any(one.samefile(place) for one in (within, *within.parents)):
            raise ExciseError(
                f"{path} is not overwritten, since {read} is read: choose another name"
            )


def _sweep(place: Path) -> None:
    """Remove what lies beside a place, and put back what was about to be replaced."""
    if _old(place).is_dir() and not os.path.lexists(place):
        _old(place).rename(place)
    for left in (_part(place), _old(place)):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def _locked(place: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a place; where none is needed any more its file goes."""
    from filelock import FileLock, Timeout

    file = _beside(place, "lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        if not os.path.lexists(file):  # some disks of the kernel's own refuse like this
            raise OSError(errno.EACCES, os.strerror(errno.EACCES)) from None
        raise ExciseError(
            f"another run writes {place}: wait for it, or choose another name"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # who waits for it sees that, and makes a new one
        lock.release()


@contextmanager
def _told_of(path: str | Path, *more: type[Exception]) -> Iterator[None]:
    """Make what a disk refuses an error that names the path, and not a temporary one."""
    try:
        yield
    except UnwritableError as error:
        raise UnwritableError(path, error.reason) from error.__cause__
    except (OSError, *more) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UnwritableError(path, reason) from error


def _resolved(path: str | Path) -> Path:
    """Return the absolute path without links and dots."""
    return Path(os.path.realpath(as_path(path)))


def _part(place: Path) -> Path:
    return _beside(place, "part")


def _old(place: Path) -> Path:
    return _beside(place, "old")


def _beside(place: Path, what: str) -> Path:
    return place.parent / f".{place.name}{_ENDING}{what}"
