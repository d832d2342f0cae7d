"""Estimates, intervals and p values against slow loops and simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from excise.core.bootstrap import CAUTION, RESAMPLES, Bootstrap, resampled_sums
from excise.core.errors import ExciseError
from excise.core.statistics import Measure, Statistic, estimate, measure, short, wilson
from excise.eval.paired import paired
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import special


MEAN = Statistic("mean", "x")
RATE = Statistic("rate", "x", "w", scale=3.0)
PERPLEXITY = Statistic("perplexity", "x", "w", "exp")
SHARE = Statistic("share", "x", better="higher", proportion=True)

numbers = st.floats(-100, 100).map(lambda x: round(x, 3))


def columns(n: int, seed: int = 0) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {"x": draw.gamma(2.0, 3.0, n), "w": draw.integers(1, 9, n).astype(float)}


def slow_resampled(n: int, seed: int, number: Callable[[list[int]], float]) -> list[float]:
    """Compute a number of every bootstrap sample, given as a list of unit indices."""
    counts = resampled_sums(np.eye(n), seed).astype(int)  # how often each unit was drawn
    return [number([i for i in range(n) for _ in range(row[i])]) for row in counts]


def slow_error(x: list[float], w: list[float]) -> tuple[float, float, list[float]]:
    """Return a ratio of sums, its standard error, and what each unit adds to it."""
    n, ratio = len(x), sum(x) / sum(w)
    parts = [(a - ratio * b) / (sum(w) / n) for a, b in zip(x, w, strict=True)]
    return ratio, math.sqrt(sum(p * p for p in parts) / (n * (n - 1))), parts


def slow_bound(x: list[float], w: list[float], seed: int, probability: float) -> float:
    """Find the bound of a ratio by the bootstrap-t, plainly."""
    n = len(x)
    ratio, error, parts = slow_error(x, w)
    pivots = []
    for row in resampled_sums(np.eye(n), seed).astype(int):
        chosen = [i for i in range(n) for _ in range(row[i])]
        again, its, _ = slow_error([x[i] for i in chosen], [w[i] for i in chosen])
        pivots.append((again - ratio) / max(its, error / n))
    upper = probability >= 0.5
    tail = 1 - probability if upper else probability
    cubes, squares = sum(p**3 for p in parts) / n, sum(p**2 for p in parts) / n
    skew = cubes / squares**1.5 * math.sqrt(n * (n - 1)) / (n - 2) * (1 if upper else -1)
    rare = tail * math.exp(-CAUTION * max(0.0, skew) / math.sqrt(n))
    short_of = sorted(-p if upper else p for p in pivots)
    far = next(v for i, v in enumerate(short_of, 1) if i >= (1 - rare) * len(short_of))
    far = max(far, float(special.stdtrit(n - 1, 1 - tail)))
    return ratio + far * error if upper else ratio - far * error


def slow_number(statistic: Statistic, x: Any, w: Any) -> Callable[[list[int]], float]:
    def number(chosen: list[int]) -> float:
        above = sum(statistic.scale * float(x[i]) for i in chosen)
        below = sum(float(w[i]) if statistic.per else 1.0 for i in chosen)
        return math.exp(above / below) if statistic.link == "exp" else above / below

    return number


@pytest.mark.parametrize("statistic", [MEAN, RATE, PERPLEXITY])
def test_estimate_equals_a_slow_loop(statistic: Statistic):
    data = columns(9)
    number = slow_number(statistic, data["x"], data["w"])
    found, slow = estimate(statistic, data, seed=3), slow_resampled(9, 3, number)
    assert found.value == pytest.approx(number(list(range(9))), rel=1e-12)
    assert found.n == 9
    np.testing.assert_allclose(found.resampled, slow, rtol=1e-12)
    for probability in (0.001, 0.025, 0.05, 0.5, 0.9, 0.975):
        x, w = (list(map(float, data[key])) for key in "xw")
        w = w if statistic.per else [1.0] * 9
        inner = slow_bound([statistic.scale * v for v in x], w, 3, probability)
        expected = math.exp(inner) if statistic.link == "exp" else inner
        assert found.bound(probability) == pytest.approx(expected, rel=1e-9)
    assert found.interval() == pytest.approx((found.bound(0.025), found.bound(0.975)))
    assert found.interval(0.9) == (pytest.approx(found.bound(0.05)), found.bound(0.95))


@pytest.mark.parametrize("n", [8, 40])
def test_the_interval_of_a_symmetric_mean_is_that_of_student(n: int):
    x = 10 + special.ndtri((np.arange(n) + 0.5) / n)
    half = float(special.stdtrit(n - 1, 0.975)) * x.std(ddof=1) / math.sqrt(n)
    low, high = estimate(MEAN, {"x": x}).interval()
    assert half - 1e-9 <= (high - low) / 2 <= 1.12 * half
    assert (high + low) / 2 == pytest.approx(x.mean(), abs=0.1 * half)


@pytest.mark.parametrize("n", [12, 30, 400])
def test_p_values_are_the_inverse_of_bounds(n: int):
    found = estimate(PERPLEXITY, {key: v / 50 for key, v in columns(n).items()})
    for probability in (0.02, 0.05, 0.2):
        assert found.p_below(found.bound(probability)) == pytest.approx(probability, abs=0.01)
        assert found.p_above(found.bound(1 - probability)) == pytest.approx(probability, abs=0.01)
    for threshold in np.quantile(found.resampled, np.linspace(0, 1, 200)):
        if abs(found.p_below(threshold) - 0.05) > 0.01:
            assert (found.p_below(threshold) < 0.05) == (found.bound(0.05) > threshold)
        if abs(found.p_above(threshold) - 0.05) > 0.01:
            assert (found.p_above(threshold) < 0.05) == (found.bound(0.95) < threshold)


@pytest.mark.parametrize("units", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 9.0]])
def test_samples_of_units_that_are_alike_are_not_sure(units: list[float]):
    found = estimate(RATE, {"x": np.array(units), "w": np.ones(len(units))})
    low, high = found.interval()
    assert math.isfinite(high - low)
    assert high >= max(units) * 3.0
    assert found.p_above(high + 1) < 0.05 < found.p_above(found.value)


def test_p_values_never_reach_zero_and_count_ties_half():
    many = Bootstrap(0.0, np.zeros(4000), 1000)
    assert 0 < many.p_below(-1) < 0.001
    assert 0 < many.p_above(1) < 0.001
    assert many.p_below(0) == pytest.approx(0.5)
    few = Bootstrap(0.0, np.zeros(4000), 2)
    assert few.p_below(-1) > 0.05  # two units show nothing


def test_seeds():
    data = columns(30)
    first, again, other = (estimate(RATE, data, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.resampled, again.resampled)
    assert first.value == other.value
    assert first.interval() != other.interval()
    assert estimate(RATE, data).interval() == estimate(RATE, data, 0).interval()


def test_units_are_drawn_with_replacement():
    counts = resampled_sums(np.eye(6), seed=1)
    assert counts.shape == (RESAMPLES, 6)
    assert (counts.sum(1) == 6).all()
    assert counts.mean(0) == pytest.approx(np.ones(6), abs=0.06)
    assert counts.var(0) == pytest.approx(np.full(6, 5 / 6), abs=0.08)  # 6 draws at 1 in 6


def test_samples_do_not_depend_on_how_many_are_drawn_at_once():
    values = np.random.default_rng(0).normal(size=(700, 2))
    whole = resampled_sums(values, 4)
    for resamples in (1, 37, 250, 3999):
        np.testing.assert_allclose(resampled_sums(values, 4, resamples), whole[:resamples])
    assert len(np.unique(whole[:, 0])) == len(whole)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # by hand; 81 of 263 is the example of Newcombe (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(successes: int, n: int, low: float, high: float):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    x = np.arange(n) < successes
    found = measure(SHARE, {"x": x.astype(float)}, "how")
    assert found == Measure(successes / n, wilson(successes, n), n, "how")


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_proportion_and_is_symmetric(counts: tuple[int, int]):
    successes, n = counts
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))
    narrow = wilson(successes, n, 0.5)
    assert low <= narrow[0] < narrow[1] <= high


def test_one_unit_shows_nothing():
    found = paired(MEAN, {"x": np.array([1.0])}, {"x": np.array([5.0])})
    for bootstrap in (found.difference, found.relative, estimate(MEAN, {"x": np.array([1.0])})):
        assert bootstrap.interval() == (-math.inf, math.inf)
        assert bootstrap.p_below(-9) == bootstrap.p_above(9) == 1
    assert found.permutation_p == found.sign_p == found.equivalence_p(9) == 1
    assert found.detectable == math.inf


def test_broken_models_have_numbers_but_nan_has_none():
    lost = {"x": np.full(5, 1e6), "w": np.ones(5)}
    fine = {"x": np.arange(5.0), "w": np.ones(5)}
    assert estimate(PERPLEXITY, lost).value == pytest.approx(math.exp(700))
    assert paired(PERPLEXITY, fine, lost).relative.interval()[0] > 1e300
    for bad in (math.nan, -math.inf):
        with pytest.raises(ExciseError, match="rate: the value of a unit is NaN"):
            estimate(RATE, {**fine, "x": np.array([1, 2, bad, 3, 4])})
        with pytest.raises(ExciseError, match="NaN"):
            paired(MEAN, fine, {"x": np.array([1, 2, bad, 3, 4])})


def test_what_cannot_be_resampled_or_paired():
    with pytest.raises(ExciseError, match="nothing to resample"):
        estimate(MEAN, {"x": np.array([])})
    with pytest.raises(ExciseError, match="too many units are empty"):
        estimate(RATE, {"x": np.ones(3), "w": np.array([0.0, 0, 5])})
    with pytest.raises(ExciseError, match="rate counts other w in the second model"):
        paired(RATE, columns(5), {**columns(5), "w": np.arange(1.0, 6)})


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=12), st.floats(0.01, 100), st.integers(0, 9))
def test_scale(values: list[float], factor: float, seed: int):
    x = np.array(values)
    assume(x.any())  # nothing but zeros have no scale
    one, scaled = (estimate(MEAN, {"x": c * x}, seed) for c in (1.0, factor))
    np.testing.assert_allclose(scaled.resampled, factor * one.resampled, rtol=1e-9, atol=1e-9)
    assert scaled.value == pytest.approx(factor * one.value, rel=1e-9, abs=1e-9)
    assert scaled.interval() == pytest.approx([factor * v for v in one.interval()], abs=1e-9)


@pytest.mark.parametrize("n", [10, 40])
def test_coverage(n: int):
    draw, held, below = np.random.default_rng(n), 0, 0
    for seed in range(300):
        w = draw.integers(5, 50, n).astype(float)
        found = estimate(PERPLEXITY, {"x": w * draw.normal(3, 0.4, n), "w": w}, seed)
        low, high = found.interval()
        held += low <= math.exp(3) <= high
        below += found.p_below(math.exp(3)) <= 0.05
    assert 0.9 <= held / 300 <= 0.99
    assert 0.01 <= below / 300 <= 0.1


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.3456, "12.35"), (0.012345, "0.012"), (0, "0.00"), (-0.5, "-0.50"), (1234.5, "1234"),
     (3e8, "3.00e+08"), (math.inf, "inf")],
)  # fmt: skip
def test_numbers_read_well(value: float, text: str):
    assert short(value) == text
    assert str(Measure(value, (-1.0, 13.98765), 5, "p")) == f"{text} [-1.00, 13.99]"
