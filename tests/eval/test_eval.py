"""Numbers of `eval/` against plain loops and hand-computed values."""

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.circuits.ioi import ioi_prompts
from excise.core.data import Sample, encode_prompts
from excise.core.errors import ExciseError
from excise.eval.choice import choice_accuracy, wilson
from excise.eval.perplexity import Measure, bootstrap, perplexity
from excise.eval.text import builtin_text
from hypothesis import given
from hypothesis import strategies as st


WORDS = ("Mary", "John", "gave", "the", "book", "to", "and", ".")


@pytest.fixture(scope="module")
def text() -> str:
    """Return 300 words in a fixed, irregular order."""
    return " ".join(random.Random(1).choices(WORDS, k=300))


def slow_perplexity(model: Any, ids: list[int], window: int) -> float:
    """Sum losses token by token: windows do not overlap, the rest is left out."""
    total, count = 0.0, 0
    for start in range(0, len(ids) - window + 1, window):
        piece = ids[start : start + window]
        with torch.no_grad():
            logits = model(torch.tensor([piece])).logits[0].double()
        for position in range(window - 1):
            row = logits[position]
            total -= float(row[piece[position + 1]] - torch.logsumexp(row, 0))
            count += 1
    return math.exp(total / count)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "opt-350m", "gemma3"])
@pytest.mark.parametrize("window", [2, 16, 37])
def test_perplexity_equals_a_plain_loop(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, text: str, kind: str, window: int
):
    model, ids = tiny(kind), tiny_tokenizer(text)["input_ids"]
    found = perplexity(model, tiny_tokenizer, text, window)
    assert found.value == pytest.approx(slow_perplexity(model, ids, window), rel=1e-4)
    assert found.n == len(ids) // window
    assert found.ci[0] < found.value < found.ci[1]
    assert f"window={window}" in found.protocol


def test_perplexity_depends_on_nothing_else(tiny_llama: Any, tiny_tokenizer: Any, text: str):
    first = perplexity(tiny_llama, tiny_tokenizer, text, 20)
    torch.manual_seed(3)
    random.seed(3)
    assert perplexity(tiny_llama, tiny_tokenizer, text, 20) == first
    other = perplexity(tiny_llama, tiny_tokenizer, text, 20, seed=1)
    assert other.value == first.value  # the seed is of the interval alone
    assert other.ci != first.ci
    few = perplexity(tiny_llama, tiny_tokenizer, text, 20, limit=3)
    ids = tiny_tokenizer(text)["input_ids"]
    assert few.n == 3
    assert few.value == pytest.approx(slow_perplexity(tiny_llama, ids[:60], 20), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "window", "limit", "named"),
    [
        (50, 1, None, "window is 1"),
        (50, 10_000, None, "window 10000 is longer"),
        (50, 64, None, "51 tokens, less than one window of 64"),
        (50, 8, 0, "limit is 0"),
    ],
)
def test_what_cannot_be_measured(
    tiny_opt: Any, tiny_tokenizer: Any, words: int, window: int, limit: int | None, named: str
):
    with pytest.raises(ExciseError, match=named):
        perplexity(tiny_opt, tiny_tokenizer, "Mary " * words, window, limit)


def test_a_broken_model_has_no_perplexity(tiny_llama: Any, tiny_tokenizer: Any, text: str):
    with torch.no_grad():
        tiny_llama.model.norm.weight[0] = float("nan")
    with pytest.raises(ExciseError, match="NaN"):
        perplexity(tiny_llama, tiny_tokenizer, text, 16)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_choice_equals_a_plain_loop(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str, batch_size: int
):
    model, samples = tiny(kind), encode_prompts(tiny_tokenizer, ioi_prompts(tiny_tokenizer, 11))
    differences = []
    for sample in samples:
        with torch.no_grad():
            last = model(torch.tensor([sample.input_ids])).logits[0, -1].double()
        differences.append(float(last[sample.answer] - last[sample.wrong]))
    found = choice_accuracy(model, samples, batch_size)
    right = sum(difference > 0 for difference in differences)
    assert found.accuracy.value == right / 11
    assert found.accuracy.ci == wilson(right, 11)
    mean = sum(differences) / 11
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 10 / 11)
    assert found.logit_difference.value == pytest.approx(mean, abs=1e-5)
    assert found.logit_difference.ci == pytest.approx((mean - 1.96 * error, mean + 1.96 * error))


def test_choice_needs_both_answers_and_room(tiny_opt: Any):
    with pytest.raises(ExciseError, match="wrong"):
        choice_accuracy(tiny_opt, [Sample((1, 2, 3), answer=4)])
    with pytest.raises(ExciseError, match="10000 tokens"):
        choice_accuracy(tiny_opt, [Sample((1,) * 10_000, answer=4, wrong=5)])
    single = choice_accuracy(tiny_opt, [Sample((1, 2, 3), answer=4, wrong=5)])
    assert single.logit_difference.ci == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # z = 1.96, by hand; 81 of 263 is the example of Newcombe (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_is_symmetric(counts: tuple[int, int]):
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def mean(values: Any) -> float:
    return sum(values) / len(values)


def test_bootstrap():
    draw = random.Random(7)
    values = [draw.gauss(3, 2) for _ in range(400)]
    low, high = bootstrap(values, mean)
    assert bootstrap(values, mean) == (low, high)
    assert bootstrap(values, mean, seed=1) != (low, high)
    error = math.sqrt(mean([(v - mean(values)) ** 2 for v in values]) / len(values))
    assert low == pytest.approx(mean(values) - 1.96 * error, abs=0.03)
    assert high == pytest.approx(mean(values) + 1.96 * error, abs=0.03)
    assert bootstrap([2.0], mean) == (2.0, 2.0)


def test_a_measure_reads_well():
    assert str(Measure(12.3456, (11.0, 13.98765), 5, "p")) == "12.35 [11.00, 13.99]"


def test_the_builtin_text_is_there():
    assert len(builtin_text().split()) > 50_000
