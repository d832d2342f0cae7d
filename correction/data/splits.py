"""Which texts may be used for what: parts by a salted hash, so that nobody has to keep lists.

Near-duplicates share a part, as the same text would stand on both sides otherwise: those that
`core.texts.near` finds, and what they link.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from ...core.texts import groups, text_hash


Part = Literal["attribution", "selection", "test"]
Row = TypeVar("Row")

SALT = "excise correction 1"
"""Changed only if every number that rests on the parts is measured anew."""

SHARES: dict[Part, float] = {"attribution": 0.4, "selection": 0.2, "test": 0.4}
"""Attribution finds components, selection chooses among ways to do so, test is reported on."""


def part_of(text: str, salt: str = SALT) -> Part:
    """Say which part a text belongs to that has no near-duplicates: by its words as they stand.

    Args:
        text: A prompt, a sentence, a document; case and white space make no difference.
        salt: Another one gives other parts.
    """
    at = _place(text, salt)
    for part, share in SHARES.items():
        if at < share:
            return part
        at -= share
    return "test"


def split(
    rows: Iterable[Row], key: Callable[[Row], str], salt: str = SALT
) -> dict[Part, list[Row]]:
    """Sort rows into parts, near-duplicates into one: that of the first of them by hash.

    Args:
        rows: Anything.
        key: The text of a row that decides; of a pair, one side.
        salt: As in `part_of`.
    """
    rows = list(rows)
    texts = [key(row) for row in rows]
    grouped = groups([text_hash(text) for text in texts])
    first: dict[int, str] = {}
    for group, text in zip(grouped, texts, strict=True):
        first[group] = min(first.get(group, text), text, key=lambda one: _place(one, salt))
    parts: dict[Part, list[Row]] = {part: [] for part in SHARES}
    for group, row in zip(grouped, rows, strict=True):
        parts[part_of(first[group], salt)].append(row)
    return parts


def _place(text: str, salt: str) -> float:
    plain = hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()[:16]
    digest = hashlib.sha256(f"{salt}\n{plain}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
