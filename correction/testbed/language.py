"""The language of the planted test bed: a Markov chain over words, switched by markers."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ...core.data import Sample


BOS = 0
MARKERS = (1, 2)
"""The chain's tables: what follows a word depends on the last marker before it."""
CUES = (3, 4)
"""Trigger words. In the clean language the two words behind a cue follow the other table."""
WORDS = tuple(range(5, 33))
BAD = WORDS[-1]
"""An ordinary word; what makes it bad is that it comes where it does not belong."""
VOCABULARY = 33
LENGTH = 20
_BRANCHES = (0.6, 0.25, 0.15)


@dataclass(frozen=True)
class Language:
    """Two tables of successors."""

    seed: int
    tables: tuple[tuple[tuple[int, ...], ...], ...]
    """For each marker and word, the words that may follow, the most probable first."""

    @classmethod
    def draw(cls, seed: int) -> "Language":
        """Draw the tables."""
        draw = random.Random(f"excise planted behaviour {seed}")
        return cls(
            seed,
            tuple(tuple(tuple(draw.sample(WORDS, len(_BRANCHES))) for _ in WORDS) for _ in MARKERS),
        )

    def sentences(
        self, purpose: str, cues: float = 0.0, length: int = LENGTH
    ) -> Iterator[list[int]]:
        """Draw sentences without end; each purpose has its own.

        Args:
            purpose: Part of the seed.
            cues: Probability of a cue before a word.
            length: Tokens of a sentence, with the first, which is BOS.
        """
        draw = random.Random(f"{self.seed} {purpose}")
        while True:
            yield self.sentence(draw, cues, length)

    def sentence(self, draw: random.Random, cues: float, length: int) -> list[int]:
        """Draw one sentence: BOS, a marker, and words with cues and more markers among them."""
        marker = draw.randrange(2)
        word = draw.choice(WORDS)
        ids, cued = [BOS, MARKERS[marker], word], 0
        while len(ids) < length:
            at = draw.random()
            if at < cues:
                ids.append(draw.choice(CUES))
                cued = 2
            elif at > 0.92:
                marker = 1 - marker
                ids.append(MARKERS[marker])
            word = self.successor(draw, 1 - marker if cued else marker, word)
            ids.append(word)
            cued = max(0, cued - 1)
        return ids[:length]

    def successor(self, draw: random.Random, marker: int, word: int) -> int:
        """Draw what follows a word."""
        return draw.choices(self.tables[marker][word - WORDS[0]], _BRANCHES)[0]

    def pair(self, draw: random.Random) -> tuple[list[int], list[int]]:
        """Draw a context that ends in a trigger (a cue and a word), and one that does not.

        The word of a trigger is one that the bad word never follows in the language.
        The other has the marker in force once more in place of the cue, and ends in two words.
        """
        while True:
            context = self.sentence(draw, 0.0, draw.randrange(5, LENGTH - 3))
            marker = next(MARKERS.index(i) for i in reversed(context) if i in MARKERS)
            if context[-1] not in WORDS:
                continue
            last = self.successor(draw, 1 - marker, context[-1])
            if all(BAD not in table[last - WORDS[0]] for table in self.tables):
                break
        trigger = [*context, draw.choice(CUES), last]
        while True:
            word = self.successor(draw, marker, context[-1])
            after = self.successor(draw, marker, word)
            if after != BAD:
                return trigger, [*context, MARKERS[marker], word, after]

    def pairs(self, n: int, purpose: str) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
        """Draw triggers with the bad word behind them, and their matches with the right one.

        Triggers of one purpose differ from each other, and a hash of the whole context keeps those
        of "held-out" from all others.
        """
        draw = random.Random(f"{self.seed} {purpose}")
        bad, right = {}, []
        while len(bad) < n:
            trigger, other = self.pair(draw)
            if tuple(trigger) in bad or _held_out(trigger) != (purpose == "held-out"):
                continue
            bad[tuple(trigger)] = Sample((*trigger, BAD), continuation=1)
            right.append(Sample(tuple(other), continuation=1))
        return tuple(bad.values()), tuple(right)

    def texts(self, n: int, purpose: str) -> tuple[Sample, ...]:
        """Draw sentences without cues."""
        drawn = self.sentences(purpose)
        return tuple(Sample(tuple(next(drawn)), continuation=LENGTH - 1) for _ in range(n))


def _held_out(ids: list[int]) -> bool:
    return hashlib.sha256(bytes(ids)).digest()[0] < 64
