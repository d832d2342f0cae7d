"""Which texts may be used for what: parts by a salted hash, so that nobody has to keep lists."""

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from ..core.data import text_hash


Part = Literal["attribution", "selection", "test"]
Row = TypeVar("Row")

SALT = "excise correction 1"
"""Changed only if every number that rests on the parts is measured anew."""

SHARES: dict[Part, float] = {"attribution": 0.4, "selection": 0.2, "test": 0.4}
"""Attribution finds components, selection chooses among ways to do so, test is reported on."""


def part_of(text: str, salt: str = SALT) -> Part:
    """Say which part a text belongs to; case and white space make no difference.

    Args:
        text: A prompt, a sentence, a document.
        salt: Another one gives other parts.
    """
    digest = hashlib.sha256(f"{salt}\n{text_hash(text)}".encode()).digest()
    at = int.from_bytes(digest[:8], "big") / 2**64
    for part, share in SHARES.items():
        if at < share:
            return part
        at -= share
    return "test"


def split(
    rows: Iterable[Row], key: Callable[[Row], str], salt: str = SALT
) -> dict[Part, list[Row]]:
    """Sort rows into parts.

    Args:
        rows: Anything.
        key: The text of a row that decides; of a pair, one side.
        salt: As in `part_of`.
    """
    parts: dict[Part, list[Row]] = {part: [] for part in SHARES}
    for row in rows:
        parts[part_of(key(row), salt)].append(row)
    return parts
