"""Units that are all alike do not prove that others are."""

import numpy as np
import pytest
from excise.core.statistics import Statistic, estimate, unseen
from excise.eval.paired import paired


MEAN = Statistic("mean", "x")


def test_where_enough_vary_nothing_is_added():
    draw = np.random.default_rng(0)
    for n in (4, 12, 40, 400):  # all vary, or 20 of them
        values = draw.normal(size=n)
        assert unseen(values - np.median(values), values) == 0
    sparse = np.where(np.arange(200) < 20, 0.3, 0.0)
    assert unseen(sparse, sparse) == 0
    assert unseen(sparse[1:], sparse[1:]) == pytest.approx(0.3)  # 19 are too few
    assert unseen(np.zeros(5), np.array([0.1, -0.4, 0, 0, 0])) == pytest.approx(0.4)
    assert unseen(np.zeros(5), np.zeros(5)) == 1


@pytest.mark.parametrize("n", [30, 100])
def test_bounds_are_near_the_rule_of_three(n: int):
    """Where n units show nothing, up to 3 / n of others may, with 95 % confidence."""
    nothing = estimate(MEAN, {"x": np.zeros(n)})
    assert 0.5 * 3 / n < nothing.bound(0.95) < 1.5 * 3 / n
    same = {"x": np.full(n, 0.5)}
    assert 0.25 * 3 / n < paired(MEAN, same, same).difference.bound(0.95) < 1.5 * 3 / n


@pytest.mark.parametrize("differing", [3, 6, 12])
def test_few_units_that_differ_are_no_proof(differing: int):
    """A difference without direction is taken for an improvement in 5 % of cases at most."""
    draw, proofs = np.random.default_rng(differing), 0
    for seed in range(120):
        x = draw.beta(0.6, 2, 100)
        change = np.zeros(100)
        change[:differing] = 0.3 * draw.choice([-1, 1], differing)
        proofs += paired(MEAN, {"x": x}, {"x": x + change}, seed).difference.p_above(0) <= 0.05
    assert proofs / 120 <= 0.05 + 1.96 * (0.05 * 0.95 / 120) ** 0.5
