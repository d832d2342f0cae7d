"""Repetition of completions: against brute force, and by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.core.generation import Decoding
from excise.core.loading import Loaded
from excise.core.texts import text_hash
from excise.eval.outcome import Outcome
from excise.eval.repetition import (
    PROMPTS,
    REPETITIVE,
    STATISTICS,
    Repetition,
    distinct_n,
    longest_repeat,
    repetition,
)
from excise.eval.run import evaluate
from hypothesis import given
from hypothesis import strategies as st


texts = st.integers(1, 4).flatmap(lambda words: st.lists(st.integers(1, words), max_size=14))
"""Few words, so that they repeat."""


@given(texts, st.integers(1, 4))
def test_distinct_n_equals_counting(tokens: list[int], n: int):
    grams: list[list[int]] = []
    every = [tokens[i : i + n] for i in range(len(tokens)) if len(tokens[i : i + n]) == n]
    for gram in every:
        if gram not in grams:
            grams.append(gram)
    assert distinct_n(tokens, n) == (len(grams) / len(every) if every else 1.0)


@given(texts)
def test_longest_repeat_equals_looking_at_every_span(tokens: list[int]):
    n = len(tokens)
    found = [
        length
        for length in range(1, n)
        for i in range(n)
        for j in range(i + length, n - length + 1)  # behind the first: no overlap
        if tokens[i : i + length] == tokens[j : j + length]
    ]
    assert longest_repeat(tokens) == max(found, default=0)


@pytest.mark.parametrize(
    ("text", "unique", "two", "three", "longest", "repetitive", "length"),
    [
        ("", 1.0, 1.0, 1.0, 0, 0, 0),
        ("a", 1.0, 1.0, 1.0, 0, 0, 1),
        ("a a", 0.5, 1.0, 1.0, 1, 0, 2),
        ("a a a", 1 / 3, 0.5, 1.0, 1, 1, 3),
        ("a b a b", 0.5, 2 / 3, 1.0, 2, 0, 4),
        ("a b c a b c d", 4 / 7, 4 / 6, 4 / 5, 3, 0, 7),
        ("a b c d", 1.0, 1.0, 1.0, 0, 0, 4),
        ("a a a a a a", 1 / 6, 1 / 5, 1 / 4, 3, 1, 6),
    ],
)
def test_by_hand(
    text: str, unique: float, two: float, three: float, longest: int, repetitive: int, length: int
):
    assert repetition(text.split()) == pytest.approx(
        {
            "unique_token_ratio": unique,
            "distinct_2": two,
            "distinct_3": three,
            "longest_repeat": longest,
            "repetitive": repetitive,
            "length": length,
        }
    )


def test_every_prompt_is_another():
    assert len({text_hash(prompt) for prompt in PROMPTS}) == len(PROMPTS) >= 30
    assert all(prompt == prompt.strip() for prompt in PROMPTS)  # else tokenizers stumble


@pytest.fixture
def loaded(tiny: Callable[..., Any], tiny_tokenizer: Any) -> Loaded:
    return Loaded(tiny("llama-untied"), tiny_tokenizer, "tiny")


def found(loaded: Loaded, rows: Sequence[Sequence[str]], **settings: Any) -> Outcome:
    """Return the outcome of completions that are given."""
    ids = loaded.tokenizer.convert_tokens_to_ids
    metric = Repetition(PROMPTS[: len(rows)], **settings)
    given = [{"completions": [ids(text.split()) for text in row]} for row in rows]
    (outcome,) = metric.outcomes(loaded, metric.plan(loaded), given)
    return outcome


def test_prompts_are_averaged(loaded: Loaded):
    outcome = found(loaded, [["cat cat cat"], ["the cat sat on"]])
    values = {name: measure.value for name, measure in outcome.measures.items()}
    assert values == pytest.approx(
        {
            "unique_token_ratio": (1 / 3 + 1) / 2,
            "distinct_2": 0.75,
            "distinct_3": 1.0,
            "longest_repeat": 0.5,
            "repetitive": 0.5,
            "length": 3.5,
        }
    )
    assert outcome.headline.n == 2
    assert outcome.facts == {"empty": 0, "repetitive_below": REPETITIVE}
    assert outcome.units == tuple(map(text_hash, PROMPTS[:2]))
    assert not outcome.texts
    assert {s.name for s in outcome.statistics if s.better == "lower"} == {
        "longest_repeat",
        "repetitive",
    }
    assert [s.name for s in outcome.statistics if s.proportion] == ["repetitive"]


def test_completions_of_a_prompt_are_averaged_first(loaded: Loaded):
    rows = [["cat cat cat", "the cat sat on"], ["one two three", "mat"]]
    outcome = found(loaded, rows, decoding=Decoding(2, 5))
    assert outcome.columns["repetitive"].tolist() == [0.5, 0.0]
    assert outcome.columns["length"].tolist() == [3.5, 2.0]
    # half a prompt is no yes and no no, so a proportion's interval would be wrong
    assert not any(statistic.proportion for statistic in outcome.statistics)
    low, high = outcome.measures["repetitive"].ci
    assert low <= 0.25 <= high


def test_models_that_say_nothing_are_refused(loaded: Loaded):
    with pytest.raises(ExciseError, match="1 of 4 completions for repetition are empty"):
        found(loaded, [["cat"], ["."], ["mat"], ["to"]])
    allowed = found(loaded, [["cat"], ["."], ["mat"], ["to"]], max_empty=0.25)
    assert allowed.facts["empty"] == 1


def test_a_model_is_measured_greedily(loaded: Loaded):
    metric = Repetition(max_empty=1.0)
    first = evaluate(loaded, [metric])["repetition"]
    assert first.protocol == "greedy, 50 new tokens"
    assert first.headline.n == len(PROMPTS)
    assert first.statistics == STATISTICS
    assert max(first.columns["length"]) == 50
    ratio = first.columns["unique_token_ratio"]
    assert 0 < min(ratio) < max(ratio) <= 1
    again = evaluate(loaded, [Repetition(batch_size=7, max_empty=1.0)])["repetition"]
    assert {n: v.tolist() for n, v in again.columns.items()} == {
        n: v.tolist() for n, v in first.columns.items()
    }
