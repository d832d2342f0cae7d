"""Rows that were measured once are kept: by the content of weights, tokenizer, protocol and data.

A store is one JSONL file named by a hash of everything its rows depend on. The first line repeats
what was hashed, so a file that was copied or renamed to belong to other weights is noticed. Each
row is written and flushed when it is there, which is why a killed evaluation goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError
from ..core.files.reading import parse_json


class Store:
    """The rows of one metric on one model, on disk or only in memory."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]):
        """Open or begin a store.

        Args:
            folder: Where stores are; None keeps nothing.
            identity: JSON values: all that the rows depend on.

        Raises:
            ExciseError: The file belongs to something else, is damaged, or cannot be written.
        """
        text = json.dumps(identity, sort_keys=True)
        self.rows: dict[int, dict[str, Any]] = {}
        self.path = None
        if folder is None:
            return
        key = hashlib.sha256(text.encode()).hexdigest()
        self.path = folder / f"{key[:32]}.jsonl"
        with self._usable():
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._read(key)
            else:
                self._append({"key": key, "of": _brief(identity)})

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Keep a row.

        Raises:
            ExciseError: It cannot be written, as the disk is full.
        """
        self.rows[index] = row
        if self.path:
            with self._usable():
                self._append({"unit": index, "row": row, "sum": _sum(row)})

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ExciseError(
                f"the cache {self.path} cannot be used ({error.strerror}): set EXCISE_CACHE to "
                "another folder, or pass --no-cache"
            ) from error

    def _append(self, line: dict[str, Any]) -> None:
        assert self.path
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _read(self, key: str) -> None:
        assert self.path
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a killed run wrote half a line
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        if not whole:
            self._append({"key": key})
            return
        try:
            head, *lines = (parse_json(x, "a row") for x in whole.splitlines())
            found, rows = str(head["key"]), {int(x["unit"]): dict(x["row"]) for x in lines}
            if any(x["sum"] != _sum(x["row"]) for x in lines):
                raise ValueError("a row is not what was written")
        except (ExciseError, ValueError, KeyError, TypeError) as error:
            raise ExciseError(f"the cache {self.path} is damaged: remove it") from error
        if found != key:
            raise ExciseError(
                f"the cache {self.path} belongs to other weights, data, protocol or versions "
                f"({found[:8]} and not {key[:8]}): remove it"
            )
        self.rows = rows


def _sum(row: Any) -> str:
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()[:12]


def _brief(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a human who finds the file wants to know: the short values."""
    return {k: v for k, v in identity.items() if len(json.dumps(v)) < 200}
