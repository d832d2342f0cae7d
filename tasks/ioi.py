"""Indirect object identification: who is given something.

"When Mary and John went to the store, John gave a drink to" is answered by Mary, the name that
appeared once (the task of Wang et al. 2022, arXiv 2211.00593; the prompts are our own).
"""

import random
from collections.abc import Callable
from typing import Any

from ..core.data import Prompt
from .generator import Draft, Split, Words, draw_prompts
from .vocabulary import NAMES, PLACES


OBJECTS: dict[Split, tuple[str, ...]] = {
    "train": ("book", "drink", "ring", "letter", "key", "ball", "flower", "ticket"),
    "validation": ("coin", "map", "hat", "photo", "pen", "lamp", "coat", "cake"),
    "test": ("bag", "cup", "card", "doll", "spoon", "bottle", "basket", "shirt"),
}

TEMPLATES: dict[Split, tuple[str, ...]] = {
    "train": (
        "When {a} and {b} went to the {place}, {s} gave a {thing} to",
        "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
        "While {a} and {b} were at the {place}, {s} passed a {thing} to",
        "Then {a} and {b} had a long talk at the {place}, and {s} gave a {thing} to",
    ),
    "validation": (
        "As soon as {a} and {b} reached the {place}, {s} offered a {thing} to",
        "Before {a} and {b} left the {place}, {s} showed a {thing} to",
        "Once {a} and {b} sat down near the {place}, {s} lent a {thing} to",
        "On the way to the {place}, {a} and {b} took a break, and {s} threw a {thing} to",
    ),
    "test": (
        "Because {a} and {b} liked the {place}, {s} brought a {thing} to",
        "Every day {a} and {b} walk past the {place}, where {s} gives a {thing} to",
        "Last week {a} and {b} worked together at the {place}, and {s} sold a {thing} to",
        "Although {a} and {b} were tired after a day at the {place}, {s} sent a {thing} to",
    ),
}
"""Two people, `a` and `b`, one of whom gives: the subject `s`."""


def ioi_prompts(
    tokenizer: Any,
    n: int,
    seed: int = 0,
    split: Split = "train",
    counterfactual: str = "third-name",
) -> list[Prompt]:
    """Make indirect-object prompts whose answers are single tokens.

    Args:
        tokenizer: A transformers tokenizer; names of several tokens are left out.
        n: How many prompts; half have the giver's name second (ABBA), half first (BABA).
        seed: Equal seeds give equal prompts.
        split: Names, places, things and templates are of one split only.
        counterfactual: `third-name` has a third person give, so that nothing says which of the
            two it should be; `swapped` has the receiver give, so that the answers trade places;
            `random` names three other people.

    Returns:
        Prompts with the indirect object as answer and the giver as wrong answer.

    Raises:
        ExciseError: Fewer than five names are one token, or see `draw_prompts`.
    """
    return draw_prompts("ioi", ioi, tokenizer, n, seed, split, counterfactual)


def ioi(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts; those of even number are ABBA, the others BABA."""
    split = words.split
    names = words.single("names", NAMES[split], least=5)

    def draft(draw: random.Random, index: int) -> Draft:
        receiver, giver, third = draw.sample(names, 3)
        template = draw.choice(TEMPLATES[split])
        things = {"place": draw.choice(PLACES[split]), "thing": draw.choice(OBJECTS[split])}
        others = [name for name in names if name not in (receiver, giver)]
        at = others.index(third)
        strangers = (third, others[at - 1], others[at - 2])

        def text(receiver: str, giver: str, subject: str) -> str:
            a, b = (receiver, giver) if index % 2 == 0 else (giver, receiver)
            return template.format(a=a, b=b, s=subject, **things)

        return Draft(
            text(receiver, giver, giver),
            answer=receiver,
            wrong=giver,
            counterfactuals={
                "third-name": text(receiver, giver, third),
                "swapped": text(receiver, giver, receiver),
                "random": text(*strangers),
            },
        )

    return draft
