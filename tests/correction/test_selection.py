"""The quadratic programme of damping: against slow versions of itself, and on planted units."""

from typing import Any

import pytest
import torch
from excise.core.data import Sample
from excise.core.errors import ExciseError
from excise.correction.data.behaviour import BehaviourSet
from excise.correction.ranking.contrast import contrast
from excise.correction.selection import (
    best_damping,
    damped_edit,
    damping_within,
    predicted_rise,
)
from hypothesis import given
from hypothesis import strategies as st


def problem(seed: int = 0, n: int = 20, units: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(units).double(), torch.randn(n, units).double()


def test_rise_is_the_quadratic_form():
    damped, sums = problem()[0].abs(), problem()[1]
    outer = torch.stack([torch.outer(row, row) for row in sums]).sum(0) / (20 * 5)
    fisher = 0.7 * outer + 0.3 * torch.diag(torch.diag(outer))
    wanted = damped @ sums.mean(0) / 5 + damped @ fisher @ damped / 2
    assert predicted_rise(damped, sums, 5, 0.3).item() == pytest.approx(wanted.item())


@given(st.integers(0, 50), st.floats(0.1, 100.0), st.sampled_from([0.7, 1.0, 1.5]))
def test_no_damping_is_better_than_the_best(seed: int, price: float, most: float):
    benefit, sums = problem(seed)
    found = best_damping(benefit, sums, 4, price, most, 0.5, 2000)
    assert bool(((found >= 0) & (found <= most)).all())

    def worth(damped: torch.Tensor) -> float:
        return (benefit @ damped - price * predicted_rise(damped, sums, 4)).item()

    best = worth(found)
    for other in (torch.zeros(6), torch.full((6,), most), *torch.rand(20, 6) * most):
        assert worth(other.double()) <= best + 1e-6 * (1 + abs(best))
        assert worth(0.99 * found + 0.01 * other.double()) <= best + 1e-6 * (1 + abs(best))


@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_budget_is_spent_and_not_exceeded(budget: float):
    benefit, sums = problem(3, 40, 30)
    sums = sums - sums.mean(0)  # nothing to be won
    found = damping_within(benefit, sums, 4, budget)
    spent = predicted_rise(found, sums, 4).item()
    assert spent <= budget * 1.01
    assert spent > 0.9 * budget or bool((found[benefit > 0] > 0.99).all())
    assert bool((found[benefit <= 0] == 0).all())


def test_units_that_cancel_each_other_are_damped_together():
    row = torch.tensor([[1.0, -1.0, 1.0]]).repeat(8, 1).double()
    sums = row * torch.tensor([1.0, -1.0] * 4)[:, None]
    found = damping_within(torch.tensor([1.0, 0.9, 0.2]).double(), sums, 1, 0.05, shrinkage=0.05)
    assert found[0] > 0.5
    assert found[1] > 0.5
    assert found[2] < 0.05


@pytest.mark.parametrize("component", ["neurons", "heads"])
def test_an_edit_of_units_with_a_benefit(tiny_opt: Any, component: Any):
    torch.manual_seed(0)
    ids = torch.randint(3, 160, (3, 6, 8)).tolist()
    first, second, third = (tuple(Sample(tuple(r), continuation=6) for r in part) for part in ids)
    sets = BehaviourSet("random", first, second, True, third)
    found = contrast(tiny_opt, sets, component=component, protect=0.2, z=0)
    edit = damped_edit(tiny_opt, sets, found, 0.5, 4, most=1.5)
    scaled = getattr(edit, component)
    assert 1 <= len(scaled) <= 4
    assert found.benefit is not None
    for unit, factor in scaled.items():
        assert found.benefit[unit] > 0
        assert not bool(found.protected[unit])
        assert -0.5 <= factor < 1
    with pytest.raises(ExciseError, match="says nothing of benefits"):
        damped_edit(tiny_opt, sets, contrast(tiny_opt, sets, "magnitude"), 0.5)
    with pytest.raises(ExciseError, match="budget is 0"):
        damped_edit(tiny_opt, sets, found, 0)


def test_no_benefit_is_an_error():
    with pytest.raises(ExciseError, match="no unit has a benefit"):
        damping_within(torch.zeros(3), torch.ones(2, 3), 1, 0.1)
