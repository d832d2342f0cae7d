"""The errors a user can meet: each names the thing, the value and the way out."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import Any, TypeVar


Entry = TypeVar("Entry")


class ExciseError(Exception):
    """An expected failure; the command line prints it as one line and exits with 1."""


class UnwritableError(ExciseError):
    """A disk refuses an output, or is full."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path} cannot be written: {reason}")
        self.reason = reason


class UnsupportedModelError(ExciseError):
    """The model's type, or one of its modules, has no known rule."""


class RuleNotFiredError(ExciseError):
    """A relevance rule was installed and never took part in the backward pass."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ExciseError:
    """Build the error for a name that is not in a table.

    Args:
        kind: What the name should have been, as in "method".
        name: The name given.
        known: Every name that exists.

    Returns:
        An error that lists near misses first, then all names.
    """
    names = sorted(known)
    near = get_close_matches(name[:200], names, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ExciseError(f"unknown {kind} {shown(name)}: {hint}known are {', '.join(names)}")


def look_up(kind: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """Return the entry of a table by name.

    Raises:
        ExciseError: No entry has this name; lists near misses and all names.
    """
    if name not in table:
        raise unknown_name(kind, name, table)
    return table[name]


_WIDER = {"float16": "float32", "bfloat16": "float32", "float32": "float64"}


def finer(dtype: object) -> str:
    """Say what helps where numbers of a dtype came out NaN or infinite."""
    name = str(dtype).removeprefix("torch.")
    if name in _WIDER:
        return f"use --dtype {_WIDER[name]}"
    return f"no --dtype is finer than {name}: try other samples, or another model"


def first_line(error: BaseException) -> str:
    """Return the beginning of what a foreign error says, for one of our own lines."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def shown(value: Any, most: int = 80) -> str:
    """Return a value for a message: as `repr`, and never longer than a reader wants to read.

    Args:
        value: Whatever was found where something else should be.
        most: Characters of a text.
    """
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = most
    short.maxdict = short.maxlist = short.maxtuple = short.maxset = 4
    short.maxlevel = 3
    return short.repr(value)
