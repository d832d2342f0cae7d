"""The task of the test bed: look up the letter that a query asks for, in the table a rule names.

A prompt reads `BOS ... >1 c ... >2 f ... rule2 ... ask1 =`, its pieces in random order, with
fillers and stray letters between them. Asked for the letter behind `>1`, the model answers with
what table 2 holds for `c`. Four things decide, and each pair of prompts changes one of them: the
letter, which marker stands where, the query, or the rule.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count

from ...core.data import Sample


N_LETTERS, N_FILLERS = 6, 6
BOS, EQUALS = 0, 1
MARKERS, QUERIES, RULES = (2, 3), (4, 5), (6, 7)
FILLERS = tuple(range(8, 8 + N_FILLERS))
LETTERS = tuple(range(14, 14 + N_LETTERS))
ANSWERS = tuple(range(20, 20 + N_LETTERS))
VOCABULARY = 32
LENGTH = 13
"""Tokens per prompt."""

CHANGES = ("letter", "marker", "query", "rule")
"""What a counterfactual may change, in the order of the pairs."""

Tables = tuple[tuple[int, ...], tuple[int, ...]]
"""For each rule, the index of the answer to each letter; the two differ everywhere."""


def draw_tables(draw: random.Random) -> Tables:
    """Draw two permutations of the letters that agree nowhere."""
    first = draw.sample(range(N_LETTERS), N_LETTERS)
    shift = draw.randrange(1, N_LETTERS)
    return tuple(first), tuple((answer + shift) % N_LETTERS for answer in first)


def solve(input_ids: Sequence[int], tables: Tables) -> int:
    """Return the answer token to a prompt."""
    (query,) = (token for token in input_ids if token in QUERIES)
    (rule,) = (token for token in input_ids if token in RULES)
    place = list(input_ids).index(MARKERS[QUERIES.index(query)]) + 1
    letter = LETTERS.index(input_ids[place])
    return ANSWERS[tables[RULES.index(rule)][letter]]


def draw_pairs(tables: Tables, draw: random.Random) -> Iterator[tuple[Sample, Sample]]:
    """Draw pairs of a prompt and its counterfactual, balanced over letters, rules and changes.

    Args:
        tables: The answers.
        draw: Source of randomness.

    Returns:
        Pairs of samples of equal length, without end; 48 hold every letter with every rule and
        every change. Both samples have the clean prompt's right answer as `answer` and the
        counterfactual's as `wrong`, so that one metric fits both.
    """
    cases = [(letter, rule) for letter in range(N_LETTERS) for rule in range(2)]
    draw.shuffle(cases)
    for index in count():
        # each round of cases begins one further on, so that each case meets each change
        letter, rule = cases[(index + index // len(cases)) % len(cases)]
        clean, other = _pair(letter, rule, CHANGES[index % len(CHANGES)], draw)
        answer, wrong = solve(clean, tables), solve(other, tables)
        yield Sample(clean, answer, wrong), Sample(other, answer, wrong)


def _pair(
    letter: int, rule: int, change: str, draw: random.Random
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    second, third = draw.sample([other for other in range(N_LETTERS) if other != letter], 2)
    asked = draw.randrange(2)
    others = [*draw.choices(LETTERS, k=2), *draw.sample(FILLERS, 3)]
    parts: list[str | int] = ["asked", "not asked", "rule", *others]
    draw.shuffle(parts)

    def tokens(asked: int, query: int, rule: int, letter: int) -> tuple[int, ...]:
        pieces: dict[str | int, list[int]] = {
            "asked": [MARKERS[asked], LETTERS[letter]],
            "not asked": [MARKERS[1 - asked], LETTERS[second]],
            "rule": [RULES[rule]],
        }
        pieces |= {token: [token] for token in others}
        body = [token for part in parts for token in pieces[part]]
        return (BOS, *body, QUERIES[query], EQUALS)

    plain = {"asked": asked, "query": asked, "rule": rule, "letter": letter}
    changed = {
        "letter": {"letter": third},
        "marker": {"asked": 1 - asked},
        "query": {"query": 1 - asked},
        "rule": {"rule": 1 - rule},
    }
    return tokens(**plain), tokens(**{**plain, **changed[change]})
