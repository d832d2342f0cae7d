"""Greater-than: a span ends later, a growing number larger, than it began.

"The war lasted from the year seventeen forty to the year seventeen" goes on with sixty rather
than twenty (after Hanna et al. 2023, arXiv 2305.00586; the prompts are our own). Numbers are
written as words: behind a space these are one token of nearly every tokenizer, whereas digits are
one, two or three, and some tokenizers split them one by one.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from .generator import Draft, Split, Words, is_single_token


@dataclass(frozen=True)
class Scale:
    """Numbers in rising order, and what is counted with them."""

    numbers: tuple[str, ...]
    nouns: dict[Split, tuple[str, ...]]
    templates: dict[Split, tuple[str, ...]]


COUNTS = Scale(
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
     "twelve"),
    {
        "train": ("ships", "shops", "boats", "farms", "towers", "bridges", "mills", "wells",
                  "teachers", "dogs", "offices", "rooms"),
        "validation": ("schools", "horses", "houses", "ponds", "trams", "clubs", "barns", "roads",
                       "doctors", "cats", "tables", "parks"),
        "test": ("guards", "nurses", "villages", "cows", "judges", "chapels", "tunnels", "gates",
                 "pilots", "goats", "chairs", "lamps"),
    },
    {
        "train": (
            "The number of {noun} rose from {start} to",
            "Over the years the number of {noun} grew from {start} to",
        ),
        "validation": (
            "In a short time the count of {noun} went up from {start} to",
            "Slowly the stock of {noun} increased from {start} to",
        ),
        "test": (
            "Because of the new law the total of {noun} climbed from {start} to",
            "They wanted to raise the amount of {noun} from {start} to",
        ),
    },
)  # fmt: skip

YEARS = Scale(
    ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
    {
        "train": ("war", "siege", "strike", "trial", "drought", "dance", "alliance", "revolt",
                  "dispute", "festival", "plague", "contract"),
        "validation": ("conflict", "voyage", "famine", "feud", "boycott", "exile", "truce", "hunt",
                       "treaty", "search", "quarrel", "course"),
        "test": ("campaign", "project", "rebellion", "journey", "reform", "mission", "debate",
                 "friendship", "inquiry", "study", "tour", "lawsuit"),
    },
    {
        "train": (
            "The {noun} lasted from the year seventeen {start} to the year seventeen",
            "The {noun} began in seventeen {start} and ended in seventeen",
        ),
        "validation": (
            "We read that the {noun} started in the year eighteen {start} and stopped in the year "
            "eighteen",
            "A book describes the {noun} between eighteen {start} and eighteen",
        ),
        "test": (
            "Historians date the {noun} from sixteen {start} until sixteen",
            "This {noun} opened in the year sixteen {start} and closed in the year sixteen",
        ),
    },
)  # fmt: skip

SCALES = (COUNTS, YEARS)
LEAST = 4
"""The lowest, and one each before, at and behind the start."""


def greater_than(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts from every scale of which the tokenizer has enough numbers.

    In the counterfactual the start is the lowest number, so that the wrong answer is later, too.
    """

    def known(scale: Scale) -> list[str]:
        return [number for number in scale.numbers if is_single_token(words.tokenizer, number)]

    numbers_of = [(scale, known(scale)) for scale in SCALES]
    most = max((numbers for _, numbers in numbers_of), key=len)
    words.enough("numbers of a scale", most, LEAST, of=max(len(s.numbers) for s in SCALES))
    usable = [(scale, numbers) for scale, numbers in numbers_of if len(numbers) >= LEAST]

    def draft(draw: random.Random, _index: int) -> Draft:
        scale, numbers = draw.choice(usable)
        lowest, *rest = numbers
        start = draw.randrange(1, len(rest) - 1)
        template = draw.choice(scale.templates[words.split])
        noun = draw.choice(scale.nouns[words.split])
        return Draft(
            template.format(noun=noun, start=rest[start]),
            answer=draw.choice(rest[start + 1 :]),
            wrong=draw.choice(rest[:start]),
            counterfactuals={"lowest-start": template.format(noun=noun, start=lowest)},
        )

    return draft
