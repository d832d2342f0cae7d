"""How a text is known again: an exact hash of its words, and a sketch that finds near-duplicates.

The sketch is MinHash in its bottom-k form (Broder 1997): the k smallest hashes of the distinct
words. Up to k words it is no estimate at all but the set itself, which is what prompts are, and it
takes three bytes a word; datasketch would store a kilobyte a prompt, with an error of 3 to 9 % in
the place where the decision falls.

Two texts are near where they differ by one word added, or share `NEAR` of their distinct words.
So a changed word counts as another text in a short one (prompts of one template must differ), and
as the same text from 16 distinct words on. The order of words makes no difference.
"""

import hashlib
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate


DIGITS = 16
"""Of the exact hash; what stands behind them is the sketch."""
WORDS = 32
"""Distinct words that a sketch holds at most."""
NEAR = 0.88
"""Share of their distinct words that near-duplicates have in common."""
LEAST = 3
"""Words that two near texts share at least: below, only equal ones are known again."""
_BYTES = 3
_ROWS = 512
"""Texts that are compared with all others at once."""
_APOSTROPHES = "'\u2019\u2018\u02bc\u00b4`\uff07"


class _Folding(dict[int, str | int | None]):
    """A table for `str.translate`, made as characters turn up."""

    def __missing__(self, code: int) -> str | int | None:
        character = chr(code)
        category = unicodedata.category(character)
        found: str | int | None = code
        if character in _APOSTROPHES or category == "Cf":  # zero-width characters are Cf
            found = None
        elif category[0] in "PZC":
            found = " "
        elif unicodedata.east_asian_width(character) == "W" and character.isalpha():
            found = f" {character} "  # written without blanks: each is a word
        self[code] = found
        return found


_TABLE = _Folding()


def folded(text: str) -> str:
    """Return what is left of a text without what does not tell texts apart.

    Unicode forms (NFKC), case, punctuation, apostrophes, zero-width characters and white space go.
    Of a text of punctuation alone only case and white space do.
    """
    even = unicodedata.normalize("NFKC", text.translate(_TABLE)).casefold().translate(_TABLE)
    return " ".join(even.split()) or " ".join(text.split()).casefold()


def text_hash(text: str) -> str:
    """Return what a text is known by: equal for texts that are equal once `folded`.

    The first `DIGITS` characters are an exact hash, the rest the sketch by which `near` finds
    texts that are nearly equal: four characters a distinct word, 128 at most.
    """
    even = folded(text)
    exact = hashlib.sha256(even.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
    words = sorted(map(_word, set(even.split())))[:WORDS]
    return exact + urlsafe_b64encode(b"".join(words)).decode()


def line_hashes(text: str) -> list[str]:
    """Return the `text_hash` of each line of at least five words."""
    return [text_hash(line) for line in text.split("\n") if len(line.split()) >= 5]


class Lines:
    """Where the lines of a text stand, so that a part of it knows those it cuts through."""

    def __init__(self, text: str):
        self._lines = text.split("\n")
        self._ends = list(accumulate(len(line) + 1 for line in self._lines))

    def of(self, start: int, end: int) -> tuple[str, ...]:
        """Return the hashes of the lines that the characters from `start` to `end` overlap."""
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, max(start, end - 1))
        return tuple(line_hashes("\n".join(self._lines[first : last + 1])))


def near(texts: Collection[str], known: Collection[str]) -> set[str]:
    """Return which texts are known: equal to one of `known`, or near one.

    Args:
        texts: As `text_hash` gives them.
        known: Likewise.
    """
    found = set(texts).intersection(known)
    rest = [text for text in texts if text not in found]
    found.update(rest[row] for row, _ in _pairs(rest, list(known)))
    return found


def groups(texts: Sequence[str]) -> list[int]:
    """Return a number for each text, the same for texts that are equal or near, or linked by such.

    Args:
        texts: As `text_hash` gives them.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    pairs = [(at, first.setdefault(text, at)) for at, text in enumerate(texts)]
    different = list(first)
    pairs += [(first[different[a]], first[different[b]]) for a, b in _pairs(different, different)]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    linked = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(texts), len(texts)))
    return connected_components(linked, directed=False)[1].tolist()


def _pairs(one: Sequence[str], other: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the places of texts that are near each other."""
    import numpy as np
    from scipy.sparse import csr_array

    if not one or not other:
        return
    left, right = ([_sketch(text) for text in part] for part in (one, other))
    places: dict[bytes, int] = {}
    for sketch in right:
        for word in sketch:
            places.setdefault(word, len(places))

    def matrix(sketches: Sequence[list[bytes]]) -> "csr_array":
        columns = [[places[word] for word in sketch if word in places] for sketch in sketches]
        ends = np.cumsum([0, *map(len, columns)])
        flat = np.array([place for row in columns for place in row], dtype=int)
        data = np.ones(len(flat), dtype=np.int32)
        return csr_array((data, flat, ends), shape=(len(sketches), max(1, len(places))))

    sizes = [np.array([len(sketch) for sketch in part]) for part in (left, right)]
    known = matrix(right).T.tocsr()
    for start in range(0, len(left), _ROWS):
        shared = (matrix(left[start : start + _ROWS]) @ known).tocoo()
        rows, columns, common = shared.row + start, shared.col, shared.data
        total = sizes[0][rows] + sizes[1][columns] - common
        close = (common >= NEAR * total) | (total - common <= 1)
        for row, column in zip(*(part[close & (common >= LEAST)] for part in (rows, columns)),
                               strict=True):  # fmt: skip
            yield int(row), int(column)


def _sketch(text: str) -> list[bytes]:
    packed = urlsafe_b64decode(text[DIGITS:])
    return [packed[at : at + _BYTES] for at in range(0, len(packed), _BYTES)]


@lru_cache(maxsize=1 << 16)
def _word(word: str) -> bytes:
    return hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
