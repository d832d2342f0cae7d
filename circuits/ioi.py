"""Indirect object identification: prompts of our own making, fitted to a tokenizer.

"When Mary and John went to the store, John gave a drink to" is answered by Mary, the name that
appeared once (the task of Wang et al. 2022, arXiv 2211.00593). The counterfactual names a third
person in place of the repeated one, so that nothing says which of the two it should be.
"""

import random
from collections.abc import Sequence
from typing import Any

from ..core.data import Prompt, answer_tokens
from ..core.errors import ExciseError


NAMES = (
    "Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma", "David", "Alice",
    "Mark", "Laura", "Peter", "Kate", "Robert", "Lucy", "Michael", "Helen", "Daniel", "Julia",
    "Adam", "Rachel", "Simon", "Maria", "Jack", "Jane", "George", "Lisa", "Henry", "Susan",
)  # fmt: skip
PLACES = ("store", "park", "school", "station", "library", "garden", "office", "market")
OBJECTS = ("book", "drink", "ring", "letter", "key", "ball", "flower", "ticket")
TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "After {a} and {b} arrived at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were at the {place}, {s} passed a {thing} to",
    "Then {a} and {b} had a long talk at the {place}, and {s} gave a {thing} to",
)


def ioi_prompts(tokenizer: Any, n: int, seed: int = 0) -> list[Prompt]:
    """Make indirect-object prompts whose answers are single tokens.

    Args:
        tokenizer: A transformers tokenizer; names of several tokens are left out.
        n: How many prompts; half have the giver's name second (ABBA), half first (BABA).
        seed: Equal seeds give equal prompts.

    Returns:
        Prompts with the indirect object as answer and the giver as wrong answer.

    Raises:
        ExciseError: Fewer than three names are one token, or `n` is below 1.
    """
    if n < 1:
        raise ExciseError(f"asked for {n} prompts: give at least 1")
    names = single_token_words(tokenizer, NAMES)
    if len(names) < 3:
        raise ExciseError(
            f"only {len(names)} of {len(NAMES)} names are one token of this tokenizer, and 3 are "
            "needed: give your own prompts with --prompts"
        )
    draw = random.Random(seed)
    prompts = []
    for index in range(n):
        receiver, giver, third = draw.sample(names, 3)
        a, b = (receiver, giver) if index % 2 == 0 else (giver, receiver)
        template = draw.choice(TEMPLATES)
        words = {"a": a, "b": b, "place": draw.choice(PLACES), "thing": draw.choice(OBJECTS)}
        prompts.append(
            Prompt(
                clean=template.format(s=giver, **words),
                counterfactual=template.format(s=third, **words),
                answer=receiver,
                wrong=giver,
            )
        )
    return prompts


def single_token_words(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """Keep the words that are one known token behind a space."""
    return [word for word in words if _is_one(answer_tokens(tokenizer, word), tokenizer)]


def _is_one(ids: Sequence[int], tokenizer: Any) -> bool:
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id
