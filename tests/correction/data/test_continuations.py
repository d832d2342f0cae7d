"""A model's own continuations as a behaviour, against words that are counted by hand."""

from collections.abc import Callable
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.core.generation import Decoding
from excise.core.loading import Loaded
from excise.correction.data.continuations import (
    APART,
    PER_PROMPT,
    bad_continuations,
    own_continuations,
    paired_continuations,
)
from excise.eval.scorers import Scorer


PROMPTS = ["the cat", "one two three", "and then it was", "not there", "mat on"]
GREEDY = Decoding(0, 6)


def _long(found: list[str]) -> list[float]:
    return [min(1.0, len(set(text.split())) / 10) for text in found]


LENGTH = Scorer("length", None, "test", _long)


def _tail(sample: Any) -> tuple[int, ...]:
    return sample.input_ids[-sample.continuation :]


def test_bad_ones_are_those_above_the_threshold(tiny: Callable[..., Any], tiny_tokenizer: Any):
    loaded = Loaded(tiny("llama-gqa"), tiny_tokenizer, "tiny")
    rows = own_continuations(loaded, PROMPTS, LENGTH, GREEDY)
    scored = [one for row in rows for one in row]
    counts = {}
    for sample, score in scored:
        counts[sample] = len(set(tiny_tokenizer.decode(_tail(sample)).split()))
        assert score == pytest.approx(counts[sample] / 10)
    threshold = sorted(score for _, score in scored)[len(scored) // 2] - 1e-9
    found = bad_continuations(loaded, PROMPTS, LENGTH, threshold, new_tokens=6)
    assert set(found.undesired) == {s for s, n in counts.items() if n / 10 > threshold}
    assert set(found.general) == set(counts) - set(found.undesired)
    with pytest.raises(ExciseError, match="score above 1"):
        bad_continuations(loaded, PROMPTS, LENGTH, 1.0, new_tokens=6)


def test_repetition_needs_no_scorer(tiny: Callable[..., Any], tiny_tokenizer: Any):
    loaded = Loaded(tiny("opt"), tiny_tokenizer, "tiny")
    rows = own_continuations(loaded, ["the cat", "one two"], None, Decoding(0, 12))
    for sample, score in (one for row in rows for one in row):
        tail = _tail(sample)
        assert score == pytest.approx(1 - len(set(tail)) / len(tail))


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_pairs_share_their_prompt_and_differ_in_score(
    tiny: Callable[..., Any], tiny_tokenizer: Any, kind: str
):
    loaded = Loaded(tiny(kind), tiny_tokenizer, "tiny")
    known: dict[tuple[int, ...], float] = {}

    def odd(found: list[str]) -> list[float]:
        return [float(len(text) % 2) for text in found]

    scorer = Scorer("odd", None, "test", odd)
    found = paired_continuations(loaded, PROMPTS, scorer, 8, new_tokens=6, seed=3)
    assert found.paired
    prompts = [tuple(tiny_tokenizer(text)["input_ids"]) for text in PROMPTS]
    counted = dict.fromkeys(prompts, 0)
    for bad, good in zip(found.undesired, found.general, strict=True):
        heads = [s.input_ids[: len(s.input_ids) - s.continuation] for s in (bad, good)]
        assert heads[0] == heads[1]
        counted[heads[0]] += 1
        for sample in (bad, good):
            (known[sample.input_ids],) = odd([tiny_tokenizer.decode(_tail(sample))])
        assert known[bad.input_ids] - known[good.input_ids] >= APART
    assert max(counted.values()) <= PER_PROMPT
    assert len({s.input_ids for s in found.undesired}) == len(found.undesired)
    again = paired_continuations(loaded, PROMPTS, scorer, 8, new_tokens=6, seed=3)
    assert (again.undesired, again.general) == (found.undesired, found.general)
    other = paired_continuations(loaded, PROMPTS, scorer, 8, new_tokens=6, seed=4)
    assert other.undesired != found.undesired


def test_prompts_without_a_contrast(tiny: Callable[..., Any], tiny_tokenizer: Any):
    loaded = Loaded(tiny("opt"), tiny_tokenizer, "tiny")
    same = Scorer("same", None, "test", lambda texts: [0.5] * len(texts))
    with pytest.raises(ExciseError, match="none of 5 prompts"):
        paired_continuations(loaded, PROMPTS, same, 2, new_tokens=4)
