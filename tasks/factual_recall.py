"""Factual recall: what a model knows about a country.

"The capital of France is the city of" goes on with Paris (the kind of prompts of Meng et al. 2022,
arXiv 2202.05262; these are our own).
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .generator import Draft, Split, Words, is_single_token


@dataclass(frozen=True)
class Relation:
    """Subjects with their objects, and how to ask for the object."""

    facts: dict[Split, Mapping[str, str]]
    statements: dict[Split, tuple[str, ...]]


CAPITALS = Relation(
    {
        "train": {
            "France": "Paris", "Japan": "Tokyo", "Russia": "Moscow", "Egypt": "Cairo",
            "Austria": "Vienna", "Portugal": "Lisbon", "Norway": "Oslo", "Canada": "Ottawa",
            "Iraq": "Baghdad", "Cuba": "Havana", "Poland": "Warsaw", "Afghanistan": "Kabul",
        },
        "validation": {
            "Germany": "Berlin", "Spain": "Madrid", "China": "Beijing", "Greece": "Athens",
            "Sweden": "Stockholm", "Hungary": "Budapest", "Kenya": "Nairobi", "Iran": "Tehran",
            "Peru": "Lima", "Australia": "Canberra", "Belgium": "Brussels", "Tunisia": "Tunis",
        },
        "test": {
            "England": "London", "Italy": "Rome", "Ireland": "Dublin", "Finland": "Helsinki",
            "Denmark": "Copenhagen", "Syria": "Damascus", "Chile": "Santiago", "India": "Delhi",
            "Bulgaria": "Sofia", "Switzerland": "Bern", "Scotland": "Edinburgh",
            "Jamaica": "Kingston",
        },
    },
    {
        "train": ("the capital of {subject} is the city of", "the capital of {subject} is called"),
        "validation": (
            "the government of {subject} sits in the town of",
            "the capital city of {subject} has the name",
        ),
        "test": (
            "those who rule {subject} meet in its capital,",
            "the largest crowds in {subject} gather in its capital,",
        ),
    },
)  # fmt: skip

LANGUAGES = Relation(
    {
        "train": {
            "France": "French", "Japan": "Japanese", "Russia": "Russian", "Portugal": "Portuguese",
            "Norway": "Norwegian", "Poland": "Polish", "Turkey": "Turkish", "Ukraine": "Ukrainian",
        },
        "validation": {
            "Germany": "German", "Spain": "Spanish", "China": "Chinese", "Greece": "Greek",
            "Sweden": "Swedish", "Hungary": "Hungarian", "Vietnam": "Vietnamese",
            "Serbia": "Serbian",
        },
        "test": {
            "England": "English", "Italy": "Italian", "Finland": "Finnish", "Denmark": "Danish",
            "Bulgaria": "Bulgarian", "Romania": "Romanian", "Thailand": "Thai",
            "Croatia": "Croatian",
        },
    },
    {
        "train": ("people in {subject} speak", "the language spoken in {subject} is"),
        "validation": (
            "children in {subject} grow up speaking",
            "the official language of {subject} is",
        ),
        "test": (
            "the newspapers of {subject} are printed in",
            "most citizens of {subject} talk to each other in",
        ),
    },
)  # fmt: skip

RELATIONS = (CAPITALS, LANGUAGES)

LEADS: dict[Split, tuple[str, ...]] = {
    "train": ("We learned that", "It is true that", "Everyone knows that", "I told her that",
              "He wrote down that"),
    "validation": ("She explained that", "You may remember that", "A map shows that",
                   "My teacher said that", "They answered that"),
    "test": ("A guide let us know that", "One can read that", "I have heard that",
             "Our atlas says that", "Travellers report that"),
}  # fmt: skip
"""What a statement begins with."""


def factual_recall(words: Words) -> Callable[[random.Random, int], Draft]:
    """Draft prompts from every relation of which the tokenizer has two facts.

    In the counterfactual the subject is another one of as many tokens, whose object is the wrong
    answer.
    """
    asked = [(r.statements[words.split], r.facts[words.split]) for r in RELATIONS]
    matched = [(statements, _matched(words, facts)) for statements, facts in asked]
    usable = [(statements, pairs) for statements, pairs in matched if pairs]
    if not usable:
        most = max(len(facts) for _, facts in asked)
        words.enough("objects of facts with equally long subjects", [], 2, of=most)

    def draft(draw: random.Random, _index: int) -> Draft:
        statements, pairs = draw.choice(usable)
        (subject, answer), (other, wrong) = draw.choice(pairs)
        template = f"{draw.choice(LEADS[words.split])} {draw.choice(statements)}"
        changed = template.format(subject=other)
        return Draft(template.format(subject=subject), answer, wrong, {"other-subject": changed})

    return draft


Fact = tuple[str, str]


def _matched(words: Words, facts: Mapping[str, str]) -> list[tuple[Fact, Fact]]:
    """Return all pairs of facts with one-token objects and subjects of equal length."""
    by_length = defaultdict[int, list[Fact]](list)
    for subject, answer in facts.items():
        ids = words.tokenizer(f"the {subject}")["input_ids"]
        if words.tokenizer.unk_token_id not in ids and is_single_token(words.tokenizer, answer):
            by_length[len(ids)].append((subject, answer))
    return [(a, b) for group in by_length.values() for a in group for b in group if a != b]
