"""How the words of a command line are read, the same for every option of every verb."""

from pathlib import Path
from typing import Any

import click
from click.types import FloatParamType, IntParamType

from ..core.errors import ExciseError, shown
from ..core.files.numbers import number, whole_number
from ..core.files.reading import as_path


class Whole(IntParamType):
    """A whole number in plain digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: Any) -> int:
        """Return it."""
        found = whole_number(value) if isinstance(value, str) else value
        if found is None:
            self.fail(f"{shown(value)} is no whole number", param, ctx)
        return super().convert(found, param, ctx)


class WholeRange(Whole, click.IntRange):  # type: ignore[misc]
    """The same within bounds."""


class Number(FloatParamType):
    """A finite number in plain digits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: Any) -> float:
        """Return it.

        Raises:
            ExciseError: NaN or infinity.
        """
        found = number(value) if isinstance(value, str) else value
        if found is None and value.strip().strip("+-").lower() in ("nan", "inf", "infinity"):
            name = max(param.opts, key=len) if param else "a number"
            raise ExciseError(f"{name} is {value}: give a finite number")
        if found is None:
            self.fail(f"{shown(value)} is no number", param, ctx)
        return super().convert(found, param, ctx)


class NumberRange(Number, click.FloatRange):  # type: ignore[misc]
    """The same within bounds."""


class FilePath(click.Path):
    """A name that a file or folder could have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: Any) -> Any:
        """Return it as a path.

        Raises:
            ExciseError: No file can be called so.
        """
        del param, ctx
        return as_path(value)


def strict(command: click.Command) -> click.Command:
    """Have every number and path of a verb read by the types above."""
    for param in command.params:
        kind = param.type
        if type(kind) is click.IntRange:
            param.type = WholeRange(kind.min, kind.max)
        elif type(kind) is click.FloatRange:
            param.type = NumberRange(kind.min, kind.max, kind.min_open, kind.max_open)
        elif type(kind) is IntParamType:
            param.type = Whole()
        elif type(kind) is FloatParamType:
            param.type = Number()
        elif type(kind) is click.Path:
            param.type = FilePath(path_type=Path)
    return command
