"""Files of others become plain values, or one error that names the file, the line and the way out.

Everything that reads text, JSON, JSONL, TSV or YAML that excise did not write in this very run goes
through here; what the values must be is said by the shapes of `schema`.
"""

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ExciseError, first_line, shown
from .schema import TEXT, check


DEPTH = 64
"""Levels of lists and objects in each other that are read."""

DIGITS = 300
"""Of a whole number: as many as a float can hold."""

_FOREIGN = (OSError, ValueError, RecursionError)
"""What goes wrong when a file is read: disk, encoding, grammar, nesting."""


def as_path(name: str | os.PathLike[str]) -> Path:
    """Return a name as a path, whether or not anything is there.

    Raises:
        ExciseError: No path can be called so: it is empty, too long, or no text.
    """
    text = os.fspath(name)
    try:
        text.encode()  # else it could be in no config, README or page
        if not text:
            raise ValueError
        Path(text).lstat()
    except ValueError:
        raise ExciseError(f"{shown(text)} is no name of a file or folder: give another") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ExciseError(
                f"the name {shown(text)} is too long for a file or folder: give a shorter one"
            ) from None
    return Path(text)


def is_name(name: str) -> bool:
    """Say whether a file could be called so, before the disk is asked about it."""
    try:
        as_path(name)
    except ExciseError:
        return False
    return True


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        ExciseError: It does not exist, is a folder, is no UTF-8 text, or holds only white space.
    """
    path = as_path(path)
    if not path.is_file():
        raise ExciseError(f"no file at {path}: give the path of a text file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ExciseError(f"{path} is no UTF-8 text (byte {error.start}): convert it") from error
    except OSError as error:
        raise ExciseError(f"{path} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise ExciseError(f"{path} is empty: give a file with text in it")
    return text


def lines_of(text: str) -> list[tuple[int, str]]:
    """Return the lines that hold something, with their numbers from 1.

    Not `splitlines`, which also splits at characters that JSON allows within a text.
    """
    return [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON of others.

    Args:
        text: The whole document.
        where: File and line, for the message.

    Raises:
        ExciseError: It is no JSON, or nested, large or broken beyond what anybody means.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        found = json.loads(text, parse_int=_whole)
        if text.count("[") + text.count("{") > DEPTH:
            _check_depth(found)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # perhaps half of a pair
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ExciseError(
            f"{where} holds half a character (\\ud800 to \\udfff): write whole ones"
        ) from None
    except RecursionError:
        raise ExciseError(f"{where} is nested too deeply: {DEPTH} levels are read") from None
    except ValueError as error:
        raise ExciseError(f"{where} is no JSON: {first_line(error)}") from error
    return found


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ExciseError: It cannot be read; or as `parse_json`.
    """
    path = as_path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ExciseError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json(content, str(path))


def shard_names(index: str | Path) -> list[str]:
    """Return the names of the files that an index of safetensors lists.

    Raises:
        ExciseError: It is no such index, or names a file in another folder.
    """
    found = read_json(index)
    check(found, {"weight_map": {"*": TEXT}}, str(index))
    names = sorted(set(found["weight_map"].values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise ExciseError(f"{index} names {shown(outside[0])}, which is no file beside it")
    return names


def tsv_rows(text: str, path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of tab-separated cells, which may be quoted, with the number of their line.

    Raises:
        ExciseError: A line that is no such row; names it.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as error:
        raise ExciseError(
            f"{path}, line {reader.line_num} is no TSV ({first_line(error)}): shorten or quote it"
        ) from error


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _check_depth(found: Any) -> None:
    level = [found]
    for _ in range(DEPTH):
        inner = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [one for v in inner if isinstance(v, list) for one in v]
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return
    raise RecursionError
