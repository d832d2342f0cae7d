"""Paired comparisons against slow loops, enumeration and simulation."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from excise.core.bootstrap import resampled_sums
from excise.core.statistics import Statistic
from excise.eval.paired import paired
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special


MEAN = Statistic("mean", "x")
HIGH = Statistic("high", "x", better="higher")
RATE = Statistic("rate", "x", "w", scale=3.0)
PERPLEXITY = Statistic("perplexity", "x", "w", "exp")
SHARE = Statistic("share", "x", better="higher", proportion=True)

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def columns(n: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {"x": draw.gamma(2.0, 3.0, n), "w": draw.integers(1, 9, n).astype(float)}


def slow(statistic: Statistic, x: Any, w: Any, counts: Any) -> float:
    """Compute a statistic of units that occur `counts` times."""
    above = sum(statistic.scale * a * k for a, k in zip(x, counts, strict=True))
    below = sum((b if statistic.per else 1.0) * k for b, k in zip(w, counts, strict=True))
    return math.exp(above / below) if statistic.link == "exp" else above / below


@pytest.mark.parametrize("statistic", [MEAN, RATE, PERPLEXITY, SHARE])
def test_paired_equals_a_slow_loop(statistic: Statistic):
    first, second = columns(8, 1), columns(8, 2)
    if statistic.proportion:
        first, second = ({"x": (c["x"] > 5).astype(float), "w": c["w"]} for c in (first, second))
    x, y, w = first["x"], second["x"], first["w"]
    found = paired(statistic, first, {"x": y, "w": w}, seed=6)
    a, b = (slow(statistic, z, w, [1] * 8) for z in (x, y))
    assert found.difference.value == pytest.approx(b - a, rel=1e-9)
    assert found.relative.value == pytest.approx(b / a - 1, rel=1e-9)
    assert found.difference.n == found.relative.n == 8
    if statistic.proportion:  # a win and a loss more (Bonett and Price 2012)
        x, y, w = (np.append(z, more) for z, more in ((x, [1, 0]), (y, [0, 1]), (w, [1, 1])))
    drawn = resampled_sums(np.eye(len(x)), seed=6)  # how often each unit was drawn
    before, after = (np.array([slow(statistic, z, w, counts) for counts in drawn]) for z in (x, y))
    np.testing.assert_allclose(found.difference.resampled, after - before, atol=1e-9)
    ratio = np.divide(after, before, out=np.full(len(drawn), np.inf), where=before > 0)
    np.testing.assert_allclose(found.relative.resampled, ratio - 1, atol=1e-9)


def test_wins_are_what_is_better():
    first, second = {"x": np.array([1.0, 2, 3, 4])}, {"x": np.array([1.0, 1, 1, 5])}
    low, high = paired(MEAN, first, second), paired(HIGH, first, second)
    assert (low.wins, low.losses) == (high.losses, high.wins) == (2, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=11))
def test_swap_and_sign_test_equal_enumeration(differences: list[int]):
    zeros = {"x": np.zeros(len(differences))}
    found = paired(MEAN, zeros, {"x": np.array(differences, float)})
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    above = sum(value >= sum(differences) for value in sums) / len(sums)
    below = sum(value <= sum(differences) for value in sums) / len(sums)
    assert found.permutation_p == pytest.approx(min(1.0, 2 * min(above, below)))
    wins, losses = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    few, m = min(wins, losses), wins + losses
    tail = sum(math.comb(m, k) for k in range(few + 1)) / 2**m
    assert found.sign_p == pytest.approx(min(1.0, 2 * tail))
    assert (found.wins, found.losses) == (wins, losses)


def test_swap_test_of_many_units():
    draw = np.random.default_rng(0)
    x, far, near = draw.normal(size=60), draw.normal(1, 1, 60), draw.normal(0, 1, 60)
    assert paired(MEAN, {"x": x}, {"x": x + far}).permutation_p < 0.002
    assert paired(MEAN, {"x": x}, {"x": x + near}).permutation_p > 0.05


@pytest.mark.parametrize("shift", [-1.2, 0.0, 1.2])
def test_equivalence_is_the_90_percent_interval_within_the_margin(shift: float):
    first = columns(25)
    second = {"x": first["x"] + np.random.default_rng(1).normal(shift, 1, 25), "w": first["w"]}
    found = paired(RATE, first, second)
    low, high = found.relative.interval(0.9)
    seen = set()
    for margin in np.linspace(0.001, 0.5, 120):
        within = 1 / (1 + margin) - 1 < low and high < margin
        p = found.equivalence_p(margin)
        if abs(p - 0.05) > 0.005:
            assert (p < 0.05) == within
            seen.add(within)
    assert seen == {True, False}


def test_detectable_effects_are_found_at_80_percent():
    draw, n, times = np.random.default_rng(2), 40, 300
    units = draw.normal(0, 1.5, (times, n))
    detectable = paired(MEAN, {"x": np.zeros(n)}, {"x": units[0]}).detectable
    assert detectable == pytest.approx(1.5 * (2.02 + 0.85) / math.sqrt(n), rel=0.3)
    exact = 1.5 / units[0].std(ddof=1) * detectable  # as if the standard error had been known
    shifted = units + exact
    t = shifted.mean(1) / (shifted.std(1, ddof=1) / math.sqrt(n))
    power = np.mean(np.abs(t) > float(special.stdtrit(n - 1, 0.975)))
    assert power == pytest.approx(0.8, abs=0.08)


def test_detectable_of_a_perplexity_counts_tokens():
    first = {"x": np.array([2.0, 8, 3, 9]), "w": np.array([2.0, 4, 1, 3])}
    second = {"x": np.array([2.5, 8, 4, 9.5]), "w": first["w"]}
    d, w = second["x"] - first["x"], first["w"]
    residuals = [(d[i] - sum(d) / sum(w) * w[i]) / (sum(w) / 4) for i in range(4)]
    error = math.sqrt(sum(r * r for r in residuals) / 3 / 4)
    expected = math.exp(sum(second["x"]) / sum(w)) * error * (3.182446 + 0.978472)
    assert paired(PERPLEXITY, first, second).detectable == pytest.approx(expected, rel=1e-5)


def test_no_difference():
    x = {"x": np.arange(20.0)}
    found = paired(MEAN, x, x)
    assert found.difference.value == found.relative.value == 0
    assert (found.wins, found.losses, found.sign_p, found.permutation_p) == (0, 0, 1, 1)
    assert found.difference.p_below(0) == pytest.approx(0.5, abs=0.03)
    low, high = found.difference.interval()
    assert -high == pytest.approx(low, rel=0.2)
    assert 1 < high < 5  # two units more, off by 19: the twentieth unit may be one of them
    ones = {"x": np.ones(20)}
    low, high = paired(SHARE, ones, ones).difference.interval()
    assert low < 0 < high  # none among 20 prompts is no proof


@pytest.mark.parametrize("sign", [1, -1])
def test_from_nothing_the_relative_change_is_infinite(sign: int):
    found = paired(MEAN, {"x": np.zeros(9)}, {"x": sign * np.arange(1.0, 10)}).relative
    assert found.value == sign * math.inf
    assert found.interval() == (sign * math.inf, sign * math.inf)
    assert (found.p_below(1e9) < 0.01) == (sign > 0)


def test_less_is_less_where_values_are_negative():
    before, after = {"x": -np.linspace(1, 2, 30)}, {"x": -np.linspace(2, 4, 30)}
    found = paired(HIGH, before, after)
    assert found.difference.value == pytest.approx(-1.5)
    assert found.relative.value == pytest.approx(-1)
    assert found.relative.interval()[1] < 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=12), numbers)
def test_swapping_the_models_swaps_the_result(pairs: list[tuple[float, float]], threshold: float):
    x, y = np.array(pairs).T
    assume(not np.isclose(x, y).all())
    ones = np.ones(len(x))  # a ratio, to which no unseen units are added
    first, second = {"x": x, "w": ones}, {"x": y, "w": ones}
    there, back = paired(RATE, first, second), paired(RATE, second, first)
    assert there.difference.value == -back.difference.value
    np.testing.assert_allclose(
        there.difference.resampled, -back.difference.resampled, rtol=1e-9, atol=1e-9
    )
    assert there.difference.p_below(threshold) == pytest.approx(back.difference.p_above(-threshold))
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.permutation_p == pytest.approx(back.permutation_p)
    assert there.detectable == pytest.approx(back.detectable)
