"""Calibration maths against definitions written out, and the shipped curve."""

import importlib.util
import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from excise.core.errors import ExciseError
from excise.eval.calibration import (
    PROFANITY,
    Platt,
    auc,
    brier,
    expected_calibration_error,
    log_loss,
    reliability_bins,
)
from hypothesis import assume, given
from hypothesis import strategies as st


CASES = st.lists(
    st.tuples(st.integers(0, 20).map(lambda k: k / 20), st.booleans()), min_size=1, max_size=40
)


def columns(cases: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [p for p, _ in cases], [y for _, y in cases]


@given(CASES)
def test_auc_counts_pairs(cases: list[tuple[float, bool]]):
    p, y = columns(cases)
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, low in itertools.product(
            [p for p, y in cases if y], [p for p, y in cases if not y]
        )
    ]
    assume(pairs)
    assert auc(p, y) == pytest.approx(sum(pairs) / len(pairs))
    assert auc([1 - one for one in p], y) == pytest.approx(1 - auc(p, y))
    assert auc(PROFANITY(p), y) == pytest.approx(auc(p, y))  # ranks stay


@given(CASES, st.integers(1, 15))
def test_bins_and_their_error(cases: list[tuple[float, bool]], n_bins: int):
    p, y = columns(cases)
    slow, error = [], 0.0
    for number in range(n_bins):
        last = number == n_bins - 1
        inside = [
            (said, seen)
            for said, seen in cases
            if int(said * n_bins) == number or (last and said == 1)
        ]
        if inside:
            said, seen = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            slow.append((said, seen, len(inside)))
            error += len(inside) / len(cases) * abs(said - seen)
    found = reliability_bins(p, y, n_bins)
    assert [n for *_, n in found] == [n for *_, n in slow]
    assert np.array(found) == pytest.approx(np.array(slow))
    assert expected_calibration_error(p, y, n_bins) == pytest.approx(error)


def test_errors_by_hand():
    p, y = [0.1, 0.15, 0.8, 1.0], [False, True, True, True]
    assert reliability_bins(p, y) == [
        (pytest.approx(0.125), 0.5, 2),
        (pytest.approx(0.8), 1.0, 1),
        (1.0, 1.0, 1),
    ]
    assert expected_calibration_error(p, y) == pytest.approx((2 * 0.375 + 0.2 + 0) / 4)
    assert brier(p, y) == pytest.approx((0.01 + 0.7225 + 0.04 + 0) / 4)
    assert log_loss(p[:3], y[:3]) == pytest.approx(
        -(math.log(0.9) + math.log(0.15) + math.log(0.8)) / 3
    )
    assert log_loss([1.0], [True]) == pytest.approx(0, abs=1e-12)
    assert 30 < log_loss([1.0], [False]) < 40  # a sure miss is dear and finite
    assert brier([0.25], [True]) == 0.5625  # one case is enough, and labels may be numbers
    assert brier([0.25, 0.5], [1, 0]) == pytest.approx((0.5625 + 0.25) / 2)


@given(CASES)
def test_parity_with_scikit_learn(cases: list[tuple[float, bool]]):
    metrics = pytest.importorskip("sklearn.metrics")
    p, y = columns(cases)
    assert brier(p, y) == pytest.approx(metrics.brier_score_loss(y, p, pos_label=True))
    assert log_loss(p, y) == pytest.approx(
        metrics.log_loss(y, np.clip(p, 1e-15, 1 - 1e-15), labels=[False, True]), abs=1e-9
    )
    if len(set(y)) == 2:
        assert auc(p, y) == pytest.approx(metrics.roc_auc_score(y, p))


@pytest.mark.parametrize("function", [auc, brier, log_loss, reliability_bins])
@pytest.mark.parametrize(
    ("p", "y", "named"),
    [
        ([], [], "at least 1"),
        ([0.5], [True, False], "same length"),
        ([0.5, math.nan], [True, False], "nan is no probability"),
        ([0.5, 1.5], [True, False], r"1\.5 is no probability"),
        ([-0.5, 0.5], [True, False], r"-0\.5 is no probability"),
    ],
)
def test_what_is_no_probability(function: Any, p: list[float], y: list[bool], named: str):
    with pytest.raises(ExciseError, match=named):
        function(p, y)


def test_what_has_no_answer():
    with pytest.raises(ExciseError, match="all 2 labels are the same"):
        auc([0.1, 0.2], [True, True])
    with pytest.raises(ExciseError, match="n_bins is 0"):
        reliability_bins([0.5], [True], 0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_curve_is_monotone_and_inside(one: float, other: float):
    low, high = PROFANITY(sorted((one, other)))
    assert 0 < low <= high < 1


def test_the_curve_by_hand():
    curve = Platt(slope=0.5, intercept=-1.0, floor=0.01)
    for score, inside in ((0.3, 0.3), (0.0, 0.01), (1.0, 0.99), (0.001, 0.01)):
        logit = 0.5 * math.log(inside / (1 - inside)) - 1
        assert curve([score])[0] == pytest.approx(1 / (1 + math.exp(-logit)))
    identity = Platt(slope=1.0, intercept=0.0)
    assert identity([0.2, 0.9]) == pytest.approx([0.2, 0.9])


@pytest.fixture(scope="module")
def script() -> Any:
    """Import the benchmark that fits the curve."""
    path = Path(__file__).parents[2] / "benchmarks" / "scorer_calibration.py"
    spec = importlib.util.spec_from_file_location("scorer_calibration", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fit_finds_a_curve_that_is_there(script: Any):
    pytest.importorskip("sklearn")
    draw = random.Random(5)
    truth = Platt(slope=0.7, intercept=0.8)
    score = np.array([draw.random() for _ in range(4000)])
    label = np.array([draw.random() < p for p in truth(score)])
    found = script.fit_platt(score, label)
    assert found.slope == pytest.approx(0.7, abs=0.08)
    assert found.intercept == pytest.approx(0.8, abs=0.1)
    residual = found(score) - label  # at the optimum, orthogonal to both features
    assert residual.mean() == pytest.approx(0, abs=1e-6)
    assert (residual * np.log(score / (1 - score))).mean() == pytest.approx(0, abs=1e-6)
    for other in (script.fit_beta, script.fit_isotonic):
        curve = other(score, label)
        assert np.abs(curve(score) - truth(score)).mean() < 0.03


def test_the_split_of_the_script(script: Any):
    sides = [script.side(f"text {i}", 2, "held out") for i in range(1000)]
    assert 400 < sum(sides) < 600
    assert sides == [script.side(f"text {i}", 2, "held out") for i in range(1000)]
    folds = [script.side(f"text {i}", 5, "fold") for i in range(1000)]
    assert set(folds) == set(range(5))
