"""What may be paired, and what is refused because it counts other things."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.core.statistics import Statistic
from excise.eval.compare import comparable
from excise.eval.compare import compare_evaluations as compare
from excise.eval.outcome import Outcome
from excise.eval.perplexity import STATISTICS, Perplexity
from excise.eval.run import Evaluation, evaluate


MEAN = Statistic("mean", "x")
RATE = Statistic("rate", "x", "w")

UNITS = tuple("abcdefgh")


def outcome(columns: Mapping[str, Any], *statistics: Statistic, **more: Any) -> Outcome:
    arrays = {name: np.asarray(values, float) for name, values in columns.items()}
    given = {"name": "o", "protocol": "how", "units": UNITS, "statistics": statistics, **more}
    return Outcome(columns=arrays, **given)


def evaluation(name: str, *outcomes: Outcome) -> Evaluation:
    return Evaluation(name, name, "tokenizer", {o.name: o for o in outcomes})


def test_a_comparison_names_and_pairs():
    before = outcome({"x": range(1, 9), "w": [2] * 8}, MEAN, RATE)
    after = outcome({"x": range(2, 10), "w": [2] * 8}, MEAN, RATE)
    mean, rate = compare(evaluation("a", before), evaluation("b", after))
    assert [mean.name, rate.name] == ["o.mean", "o.rate"]
    assert mean.difference.value == 1
    assert mean.difference.ci == (1, 1)  # each unit changed by the same
    assert rate.difference.value == 0.5
    assert mean.relative.value == pytest.approx(1 / 4.5)
    assert mean.relative.ci[0] < 1 / 4.5 < mean.relative.ci[1]
    assert mean.relative.n == 8
    assert mean.difference.protocol == "paired difference, units resampled together: how"
    assert mean.paired.losses == 8


def test_the_seed_is_that_of_the_first():
    columns = {"x": [3, 1, 4, 1, 5, 9, 2, 6]}, {"x": [2, 7, 1, 8, 2, 8, 1, 8]}
    intervals = []
    for first, second in ((0, 0), (0, 1), (1, 1)):
        before, after = (outcome(c, MEAN, seed=seed)
                         for c, seed in zip(columns, (first, second), strict=True))  # fmt: skip
        (found,) = compare(evaluation("a", before), evaluation("b", after))
        intervals.append(found.difference.ci)
    assert intervals[0] == intervals[1] != intervals[2]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"units": UNITS[::-1]}, "o was measured on other units.*give both the same prompts"),
        ({"units": UNITS[:7]}, "other units"),
        ({"protocol": "window=512"}, "in another way in the second model.*'how' and 'window=512'"),
    ],
)
def test_other_units_and_protocols_are_refused(more: Any, named: str):
    plain, other = (outcome({"x": range(8)}, MEAN, **given) for given in ({}, more))
    with pytest.raises(ExciseError, match=named):
        compare(evaluation("a", plain), evaluation("b", other))
    with pytest.raises(ExciseError, match="nothing can be paired"):
        comparable("o", other, plain)


def test_what_only_one_was_measured_for():
    both, one = outcome({"x": range(8)}, MEAN), outcome({"x": range(8)}, MEAN, name="one")
    assert len(compare(evaluation("a", both), evaluation("b", both, one))) == 1
    with pytest.raises(ExciseError, match="b was not measured for 'one', but for o"):
        compare(evaluation("a", both, one), evaluation("b", both))


def test_statistics_that_count_other_things_are_left_out():
    columns = {"x": range(8), "w": [2] * 8}
    before = outcome(columns, RATE, MEAN)
    for after in (
        outcome({**columns, "w": [2] * 7 + [3]}, RATE, MEAN),  # other tokens
        outcome({"x": range(8)}, MEAN),  # no rate at all
        outcome(columns, Statistic("rate", "x", None), MEAN),  # a rate of other things
        outcome(columns, Statistic("rate", "x", "w", "exp"), MEAN),
        outcome(columns, Statistic("rate", "x", "w", scale=2), MEAN),
    ):
        assert comparable("o", before, after) == [MEAN]
        assert [c.name for c in compare(evaluation("a", before), evaluation("b", after))] == [
            "o.mean"
        ]
    with pytest.raises(ExciseError, match="o: the two models share no statistic"):
        comparable("o", outcome(columns, RATE), outcome({**columns, "w": [1] * 8}, RATE))


class Doubled:
    """A tokenizer that has another token before each text."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **how: Any) -> Any:
        found = dict(self.tokenizer(text, **how))
        return {key: values[:1] + values for key, values in found.items()}


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str], protocol: Any) -> Evaluation:
    return evaluate(Loaded(model, tokenizer, "tiny"), [Perplexity(texts, protocol, 8)])


def test_models_of_two_tokenizers(tiny_llama: Any, tiny_opt: Any, tiny_tokenizer: Any):
    texts, other = ["the cat sat on the mat", "one two three", "Mary"] * 3, Doubled(tiny_tokenizer)
    first = perplexity(tiny_llama, tiny_tokenizer, texts, "document")
    second = perplexity(tiny_opt, other, texts, "document")
    assert [c.statistic for c in compare(first, second)] == list(STATISTICS[1:])
    same = compare(first, perplexity(tiny_opt, tiny_tokenizer, texts, "document"))
    assert [c.statistic for c in same] == list(STATISTICS)
    for found in same:
        a, b = (
            e["perplexity"].measures[found.statistic.name].value
            for e in (first, perplexity(tiny_opt, tiny_tokenizer, texts, "document"))
        )
        assert found.difference.value == pytest.approx(b - a)
        assert found.relative.value == pytest.approx(b / a - 1)
    first, second = (perplexity(tiny_llama, t, texts, "window") for t in (tiny_tokenizer, other))
    with pytest.raises(ExciseError, match="--protocol document"):
        compare(first, second)


def test_per_unit_values():
    found = outcome({"x": [2, 6, 0, 0, 9, 1, 1, 4], "w": [1, 2, 3, 4, 3, 2, 1, 4]},
                    Statistic("p", "x", "w", "exp"), Statistic("r", "x", "w", scale=2))  # fmt: skip
    powers = [2, 3, 0, 0, 3, 0.5, 1, 1]
    assert found.per_unit(found.statistics[0]).tolist() == pytest.approx(
        [math.exp(p) for p in powers]
    )
    assert found.per_unit(found.statistics[1]).tolist() == [2 * p for p in powers]
    assert found.headline == found.measures["p"]
