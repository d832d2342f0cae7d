"""Induction: a sequence that comes again goes on as it did the first time.

"List: key dog ring boat tree king key dog" goes on with ring (Olsson et al. 2022, arXiv
2209.11895; the sequences are random, so that nothing but the first occurrence says what follows).
"""

import random
from collections.abc import Callable

from .generator import Draft, Split, Words
from .vocabulary import NOUNS


LENGTH = 8
"""Words in a sequence."""

TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": ("Say it again: {sequence}", "Here they come: {sequence}"),
    "validation": ("List: {sequence}", "The words are {sequence}"),
    "test": ("A memory game: {sequence}", "Learn by heart and repeat: {sequence}"),
}


def induction(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts: a sequence of nouns, and its first three to five again.

    The wrong answer is a word that comes later in the sequence. In the counterfactual `swapped` it
    trades places with the answer, so that the same words are there and the order gives the
    other answer; in `replaced` a word from outside stands where the answer stood.
    """
    singular = [noun for noun, _ in NOUNS[words.split]]
    nouns = words.single("nouns", singular, least=LENGTH + 1)

    def draft(draw: random.Random, _index: int) -> Draft:
        *sequence, stranger = draw.sample(nouns, LENGTH + 1)
        follower = draw.choice((3, 4, 5))
        wrong = draw.randrange(follower + 1, LENGTH)
        template = draw.choice(TEMPLATES[words.split])

        def text(first: list[str]) -> str:
            return template.format(sequence=" ".join([*first, *sequence[:follower]]))

        swapped, replaced = list(sequence), list(sequence)
        swapped[follower], swapped[wrong] = sequence[wrong], sequence[follower]
        replaced[follower] = stranger
        return Draft(
            text(sequence),
            answer=sequence[follower],
            wrong=sequence[wrong],
            counterfactuals={"swapped": text(swapped), "replaced": text(replaced)},
        )

    return draft
