"""Axes hold what they are made for, with few and round ticks."""

from excise.viz.axes import Axis, spread
from hypothesis import given
from hypothesis import strategies as st


reals = st.floats(-1e300, 1e300)


@given(st.lists(st.floats(min_value=5e-324, max_value=1.7e308), min_size=1, max_size=4))
def test_a_logarithmic_axis_holds_any_positive_numbers(values: list[float]):
    axis = Axis.logarithmic(values)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    assert 1 <= len(axis.ticks) <= 12


@given(st.lists(reals, min_size=1, max_size=4))
def test_a_linear_axis_has_a_few_ticks_that_differ(values: list[float]):
    for whole in (True, False):
        axis = Axis.linear(values, whole=whole)
        assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
        assert 2 <= len({name for _, name in axis.ticks}) == len(axis.ticks) <= 9


def test_axes_have_round_ticks():
    assert [name for _, name in Axis.linear([0.03, 0.47]).ticks] == [
        "0", "0.1", "0.2", "0.3", "0.4", "0.5",
    ]  # fmt: skip
    assert Axis.linear([97, 99.5]).low == 97
    assert [name for _, name in Axis.logarithmic([3, 40]).ticks] == ["2", "5", "10", "20", "50"]
    assert [name for _, name in Axis.logarithmic([1, 3e5]).ticks][-2:] == ["10000", "100000"]


def test_names_move_apart_and_stay_inside():
    assert spread([50, 10, 52], 17, 0, 100) == [50, 10, 67]
    assert spread([99, 98, 99], 20, 0, 100) == [80, 60, 100]
