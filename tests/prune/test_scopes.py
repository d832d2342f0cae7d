"""Counts are exact, ties go by position, and budgets have the mean they were asked for."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.prune.budgets import outlier_ratio, owl_budgets
from excise.prune.scopes import (
    keep_block,
    keep_global,
    keep_layer,
    keep_n_m,
    keep_row,
    keep_with_rows,
    parse_scope,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


VALUES = st.one_of(
    st.integers(-3, 3).map(float),  # ties
    st.just(1.0),
    st.floats(width=32, allow_nan=False),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38]),
)


@st.composite
def matrices(draw: Any, rows: int = 5, columns: int = 6) -> Tensor:
    high, wide = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    flat = draw(st.lists(VALUES, min_size=high * wide, max_size=high * wide))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    return torch.tensor(flat, dtype=torch.float64).view(high, wide).to(dtype)


several = st.lists(matrices(), min_size=1, max_size=4).map(
    lambda given: {f"m{i}": matrix for i, matrix in enumerate(given)}
)
shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.999, 1.0]))


def lowest(values: list[float], gone: int) -> list[bool]:
    """Keep all but the lowest of a list, of equal ones the last: by a plain stable sort."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    return [i not in order[:gone] for i in range(len(values))]


@given(matrices(), shares)
def test_rows_and_layers_lose_exactly_the_lowest(scores: Tensor, sparsity: float):
    columns = scores.shape[1]
    expected = [lowest(row, round(sparsity * columns)) for row in scores.tolist()]
    assert keep_row(scores, sparsity).tolist() == expected
    flat = lowest(scores.flatten().tolist(), round(sparsity * scores.numel()))
    assert keep_layer(scores, sparsity).flatten().tolist() == flat


@given(matrices(), st.randoms())
def test_rows_take_their_budget_from_another_mask(scores: Tensor, draw: Any):
    rows, columns = scores.shape
    counts = [draw.randint(0, columns) for _ in range(rows)]
    keep = keep_with_rows(scores, torch.tensor(counts))
    assert keep.tolist() == [
        lowest(row, columns - n) for row, n in zip(scores.tolist(), counts, strict=True)
    ]


@given(several, shares)
def test_global_equals_one_plain_sort(scores: dict[str, Tensor], sparsity: float):
    together = torch.cat([matrix.double().flatten() for matrix in scores.values()])
    expected = lowest(together.tolist(), round(sparsity * len(together)))
    keep = keep_global(scores, sparsity)
    assert list(keep) == list(scores)
    assert [k for mask in keep.values() for k in mask.flatten().tolist()] == expected
    assert all(keep[name].shape == matrix.shape for name, matrix in scores.items())


def bounded(
    scores: Mapping[str, Tensor], gone: int, low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, list[bool]]:
    """Take what must go from each matrix, then the lowest of what may, from one sorted list."""
    keep, may = {}, []
    for place, (name, matrix) in enumerate(scores.items()):
        values = matrix.flatten().tolist()
        keep[name] = lowest(values, low[name])
        order = sorted(range(len(values)), key=lambda i: values[i])
        may += [(values[i], place, i, name) for i in order[low[name] : high[name]]]
    for _, _, i, name in sorted(may)[: gone - sum(low.values())]:
        keep[name][i] = False
    return keep


@given(several, st.data())
def test_global_within_bounds(scores: dict[str, Tensor], data: Any):
    sizes = {name: matrix.numel() for name, matrix in scores.items()}
    pairs = {
        n: sorted(data.draw(st.lists(st.integers(0, s), min_size=2, max_size=2)))
        for n, s in sizes.items()
    }
    low, high = ({n: pair[end] for n, pair in pairs.items()} for end in (0, 1))
    gone = data.draw(st.integers(sum(low.values()), sum(high.values())))
    floor, ceiling = ({n: counts[n] / sizes[n] for n in sizes} for counts in (low, high))
    keep = keep_global(scores, gone / sum(sizes.values()), floor, ceiling)
    expected = bounded(scores, gone, low, high)
    assert {name: mask.flatten().tolist() for name, mask in keep.items()} == expected


def test_bounds_that_are_not_whole_are_kept_inside():
    scores = {"a": torch.arange(10.0), "b": torch.arange(10.0, 20)}
    keep = keep_global(scores, 0.5, floor=0.25, ceiling=0.75)
    assert [int((~mask).sum()) for mask in keep.values()] == [7, 3]
    hundreds = {"a": torch.arange(100.0), "b": torch.arange(100.0, 200)}
    keep = keep_global(hundreds, 0.5, floor=0.07, ceiling=0.93)  # 0.07 * 100 is a little above 7
    assert [int((~mask).sum()) for mask in keep.values()] == [93, 7]


def test_ties_of_many_go_by_position():
    scores = torch.arange(4096).remainder(3).float().view(2, 2048)
    expected = [lowest(row, 1024) for row in scores.tolist()]
    assert keep_row(scores, 0.5).tolist() == expected
    assert keep_layer(scores, 0.5).flatten().tolist() == lowest(scores.flatten().tolist(), 2048)


def test_global_over_many_scores():
    draw = torch.Generator().manual_seed(0)
    scores = {f"m{i}": torch.randn(64, 96, generator=draw) * 10.0**i for i in range(-3, 4)}
    scores["rounded"] = torch.randn(64, 96, generator=draw).round(decimals=1)
    keep = keep_global(scores, 0.37)
    together = torch.cat([matrix.flatten() for matrix in scores.values()])
    gone = together.argsort(stable=True)[: round(0.37 * len(together))]
    expected = torch.ones(len(together), dtype=torch.bool)
    expected[gone] = False
    assert torch.equal(torch.cat([mask.flatten() for mask in keep.values()]), expected)


class Computed(Mapping[str, Tensor]):
    """Scores that exist only while they are looked at."""

    def __init__(self, scores: Mapping[str, Tensor]):
        self.scores, self.reads = scores, 0

    def __getitem__(self, name: str) -> Tensor:
        self.reads += 1
        return self.scores[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)


@pytest.mark.parametrize(("dtype", "reads"), [(torch.float32, 4), (torch.float64, 6)])
def test_global_reads_scores_one_matrix_at_a_time(dtype: torch.dtype, reads: int):
    draw = torch.Generator().manual_seed(1)
    scores = {name: torch.randn(3, 4, generator=draw).to(dtype) for name in "abc"}
    computed = Computed(scores)
    keep = keep_global(computed, 0.5, floor=0.2, ceiling=0.8)
    expected = keep_global(scores, 0.5, floor=0.2, ceiling=0.8)
    assert all(torch.equal(keep[name], expected[name]) for name in "abc")
    assert computed.reads == 3 * reads


@given(matrices(), st.integers(1, 4), st.integers(1, 4))
def test_n_of_m(scores: Tensor, n: int, m: int):
    n, m = min(n, m), max(n, m)
    columns = scores.shape[1]
    if columns % m:
        with pytest.raises(ExciseError, match=f"{columns} inputs are no multiple of {m}"):
            keep_n_m(scores, n, m)
        return
    for row, kept in zip(scores.tolist(), keep_n_m(scores, n, m).tolist(), strict=True):
        for at in range(0, columns, m):
            assert kept[at : at + m] == lowest(row[at : at + m], m - n)


def test_two_of_four_makes_two_of_four_zero():
    keep = keep_n_m(torch.tensor([[1.0, 4, 2, 3, 5, 5, 5, 5]]), 2, 4)
    assert keep.tolist() == [[False, True, False, True, False, False, True, True]]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), shares)
def test_blocks_go_whole(down: int, across: int, high: int, wide: int, sparsity: float):
    draw = torch.Generator().manual_seed(down + 10 * across)
    scores = torch.randint(-2, 3, (down * high, across * wide), generator=draw).float()
    keep = keep_block(scores, (high, wide), sparsity)
    means = [
        sum(scores[r * high + i, c * wide + j].item() for i in range(high) for j in range(wide))
        / (high * wide)
        for r in range(down)
        for c in range(across)
    ]
    kept = lowest(torch.tensor(means, dtype=torch.float32).tolist(), round(sparsity * len(means)))
    for number, stays in enumerate(kept):
        r, c = divmod(number, across)
        block = keep[r * high : (r + 1) * high, c * wide : (c + 1) * wide]
        assert (block == stays).all()


SCORES = torch.arange(1.0, 65).view(8, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("row", keep_row(SCORES, 0.25)),
        ("layer", keep_layer(SCORES, 0.25)),
        ("1:4", keep_n_m(SCORES, 1, 4)),
        ("block:4x2", keep_block(SCORES, (4, 2), 0.25)),
    ],
)
def test_a_scope_by_name(text: str, expected: Tensor):
    scope = parse_scope(text)
    assert str(scope) == text
    assert torch.equal(scope.keep(SCORES, 0.25), expected)
    assert str(parse_scope("global")) == "global"


sized = st.lists(st.tuples(st.integers(1, 900), st.floats(0, 1e3)), min_size=1, max_size=8)


def mean_of(budgets: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    return math.fsum(sizes[n] * b for n, b in budgets.items()) / sum(sizes.values())


@given(sized, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_budgets_have_their_mean_within_bounds(given: Any, a: float, b: float, c: float):
    floor, sparsity, ceiling = sorted([a, b, c])
    sizes = {f"m{i}": size for i, (size, _) in enumerate(given)}
    values = {f"m{i}": value for i, (_, value) in enumerate(given)}
    budgets = owl_budgets(values, sizes, sparsity, 0.1, floor, ceiling)
    assert list(budgets) == list(sizes)
    assert mean_of(budgets, sizes) == pytest.approx(sparsity, abs=1e-9)
    assert all(floor <= budget <= ceiling for budget in budgets.values())
    for one, other in ((m, n) for m in values for n in values if values[m] > values[n]):
        assert budgets[one] <= budgets[other] + 1e-9  # what matters more loses less


def test_owl_is_the_authors_where_layers_are_of_one_size():
    ratios, sizes = {"a": 4.0, "b": 1.0, "c": 2.0}, {"a": 10, "b": 10, "c": 10}
    stretched = [(r - 1) / 3 * 2 * 0.08 for r in ratios.values()]
    kept = [r - sum(stretched) / 3 + (1 - 0.7) for r in stretched]
    budgets = owl_budgets(ratios, sizes, 0.7)
    assert list(budgets.values()) == pytest.approx([1 - k for k in kept])
    same = owl_budgets(dict.fromkeys(sizes, 2.0), sizes, 0.7)
    assert same == pytest.approx(dict.fromkeys(sizes, 0.7))
    steep = owl_budgets({"a": 0.0, "b": 1.0}, {"a": 10, "b": 10}, 0.98)
    assert steep == pytest.approx({"a": 1.0, "b": 0.96})


def test_outliers_are_counted_against_the_mean():
    scores = torch.tensor([[1.0] * 9 + [91.0]])
    assert outlier_ratio(scores) == 0.1
    assert outlier_ratio(scores, m=10.0) == 0.0
    assert outlier_ratio([scores[:, :4], scores[:, 4:]]) == 0.1


NAN = torch.tensor([[1.0, math.nan]])
ONES = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: keep_row(NAN, 0.5), "NaN"),
        (lambda: keep_layer(NAN, 0.5), "scores are NaN"),
        (lambda: keep_global({"up": NAN}, 0.5), "scores of up are NaN"),
        (lambda: keep_row(ONES, 1.1), r"sparsity is 1.1"),
        (lambda: keep_global({"up": ONES}, -0.1), r"sparsity is -0.1"),
        (lambda: keep_layer(ONES, math.nan), r"sparsity is nan"),
        (lambda: keep_n_m(ONES, 5, 4), "5:4 keeps 5 of each 4"),
        (lambda: keep_block(ONES, (2, 3), 0.5), "2 x 3 do not tile a matrix of 2 x 4"),
        (lambda: keep_with_rows(ONES, torch.ones(3, dtype=torch.long)), "for 2 rows"),
        (lambda: keep_with_rows(ONES, torch.tensor([0, 5])), "0 to 4"),
        (lambda: keep_global({"up": ONES}, 0.5, floor=0.6), "4 weights .* allow 5 to 8"),
        (lambda: keep_global({"up": ONES}, 0.5, 0.51, 0.6), "up: no count of its 8"),
        (lambda: keep_global({"up": ONES}, 0.5, floor={"upp": 0.1}), "did you mean 'upp'"),
        (lambda: parse_scope("rows"), "did you mean 'row'"),
        (lambda: parse_scope("block:0x4"), "unknown scope"),
        (lambda: parse_scope("4:2"), "4:2 keeps 4 of each 2"),
        (lambda: parse_scope("global").keep(ONES, 0.5), "keep_global"),
        (lambda: owl_budgets({"up": 1.0}, {"down": 8}, 0.5), "down, up"),
        (lambda: owl_budgets({}, {}, 0.5), "different matrices: none"),
        (
            lambda: owl_budgets({"up": 1.0}, {"up": 8}, 0.5, floor=0.6),
            "allow 0.6000 to 1.0000",
        ),
        (lambda: owl_budgets({"up": 1.0}, {"up": 8}, 0.5, 0.1, 0.6, 0.4), "up: bounds 0.6 and"),
    ],
)
def test_what_cannot_be_chosen_is_named(call: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        call()
