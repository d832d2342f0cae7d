"""Updates against slow second versions, against the optimum, and on inputs that break them."""

from functools import partial
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.prune.criteria import CRITERIA
from excise.prune.scopes import keep_layer, keep_n_m, keep_row
from excise.prune.statistics import LinearFitter
from excise.prune.update import admm, obs, reconstruction_error, sparsegpt
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


UPDATES: dict[str, Any] = {
    "obs": obs,
    "obs-blocks": partial(obs, block=3),
    "admm": admm,
}
every_update = pytest.mark.parametrize("name", UPDATES)


def problem(
    rows: int = 6, columns: int = 16, tokens: int = 200, seed: int = 0, **to: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a weight, correlated inputs of very different sizes, and a random mask."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64)
    mix += 3 * torch.randn(1, columns, generator=draw, dtype=torch.float64)
    x = torch.randn(tokens, columns, generator=draw, dtype=torch.float64) @ mix
    x *= torch.logspace(-1, 1, columns, dtype=torch.float64)[
        torch.randperm(columns, generator=draw)
    ]
    weight = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    keep = torch.rand(rows, columns, generator=draw) < 0.5
    return weight.to(**to), x.to(**to), keep


def error_of(weight: Tensor, updated: Tensor, x: Tensor) -> float:
    return float((x.double() @ (updated - weight).double().T).square().sum())


def least_squares(weight: Tensor, gram: Tensor, keep: Tensor) -> Tensor:
    """Return the optimum for a mask, row by row: regression on the inputs that stay.

    Of several optima it is the one nearest to the dense weights.
    """
    updated = weight * keep
    for row, dense, stays in zip(updated, weight, keep, strict=True):
        missing = gram[stays][:, ~stays] @ dense[~stays]
        solve = torch.linalg.pinv(gram[stays][:, stays], rtol=1e-12, hermitian=True)
        row[stays] += solve @ missing
    return updated


def test_the_error_is_that_of_the_outputs():
    weight, x, keep = problem()
    expected = error_of(weight, weight * keep, x)
    assert reconstruction_error(weight, weight * keep, x.T @ x) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 3, 16, 128])
def test_obs_is_its_recursion(block: int):
    """One weight at a time, each with an inverse of its own: of the columns not yet passed."""
    weight, x, keep = problem()
    gram, columns = x.T @ x, weight.shape[1]
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    expected = weight.clone()
    for row, stays in zip(expected, keep, strict=True):
        for j in range(columns):
            if not stays[j]:
                inverse = torch.linalg.inv(damped[j:, j:])
                row[j:] -= row[j].clone() / inverse[0, 0] * inverse[0]
                row[j] = 0.0
    updated = obs(weight, gram, keep, block=block)
    torch.testing.assert_close(updated, expected, rtol=1e-8, atol=1e-8)


def test_sparsegpt_is_its_algorithm():
    """The same recursion, with masks chosen from the inverse of all columns that are left."""
    weight, x, _ = problem(columns=12)
    gram, columns = x.T @ x, 12
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    left = [torch.linalg.inv(damped[j:, j:]) for j in range(columns)]
    price = torch.stack([inverse[0, 0] for inverse in left])  # of each column when it is reached
    for pattern, group in ((0.5, 4), ((1, 4), 4), ((2, 3), 3)):
        expected, kept = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
        for start in range(0, columns, group):
            at = slice(start, start + group)
            scores = expected[:, at].square() / price[at]
            if isinstance(pattern, tuple):
                kept[:, at] = keep_n_m(scores, *pattern)
            else:
                kept[:, at] = keep_layer(scores, pattern)
            for j in range(start, start + group):
                handed = expected[:, j].masked_fill(kept[:, j], 0.0) / left[j][0, 0]
                expected[:, j:] -= handed[:, None] * left[j][0]
        updated, keep = sparsegpt(weight, gram, pattern, block=group)
        assert torch.equal(keep, kept)
        torch.testing.assert_close(updated, expected * kept, rtol=1e-7, atol=1e-7)


def test_groups_do_not_depend_on_blocks():
    weight, x, _ = problem()
    expected, kept = sparsegpt(weight, x.T @ x, (2, 4))
    for block in (1, 4, 6, 9):
        updated, keep = sparsegpt(weight, x.T @ x, (2, 4), block=block)
        assert torch.equal(keep, kept)
        torch.testing.assert_close(updated, expected, rtol=1e-9, atol=1e-9)


def test_least_squares_is_the_optimum():
    weight, x, keep = problem()
    gram = x.T @ x
    best = least_squares(weight, gram, keep)
    slope = (best - weight) @ gram
    assert slope[keep].abs().max() < 1e-9 * (weight @ gram).abs().max()
    assert (best[~keep] == 0).all()
    for row, dense, stays in zip(best, weight, keep, strict=True):
        solved = torch.linalg.lstsq(x[:, stays], x @ dense).solution
        torch.testing.assert_close(row[stays], solved, rtol=1e-6, atol=1e-8)


def test_admm_comes_to_the_optimum():
    weight, x, keep = problem(tokens=4000)
    gram = x.T @ x
    masked, best = (
        error_of(weight, u, x) for u in (weight * keep, least_squares(weight, gram, keep))
    )
    found = error_of(weight, admm(weight, gram, keep, iterations=2000, damping=0.0), x)
    assert best <= found <= 1.05 * best
    few = [error_of(weight, admm(weight, gram, keep, iterations=n), x) for n in (0, 5, 20)]
    assert few[0] == pytest.approx(masked)
    assert few[2] < few[1] < few[0]


def test_admm_with_damping_comes_to_the_damped_optimum():
    weight, x, keep = problem(tokens=4000)
    gram = x.T @ x
    damped = gram + 0.1 * gram.diagonal().diag()
    best = least_squares(weight, damped, keep)
    found = admm(weight, gram, keep, iterations=3000)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_errors_are_in_order(seed: int):
    weight, x, keep = problem(rows=16, columns=32, tokens=500, seed=seed)
    gram = x.T @ x
    masked = error_of(weight, weight * keep, x)
    best = error_of(weight, least_squares(weight, gram, keep), x)
    for update in (obs, admm):
        assert best <= error_of(weight, update(weight, gram, keep), x) < masked


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", [0.5, (2, 4)], ids=str)
def test_sparsegpt_is_better_than_masks_alone(seed: int, pattern: Any):
    weight, x, _ = problem(rows=16, columns=32, tokens=500, seed=seed, dtype=torch.float32)
    fitter = LinearFitter(32)
    fitter.update(x)
    statistics = fitter.result()
    assert statistics.gram is not None
    updated, keep = sparsegpt(weight, statistics.gram, pattern)
    assert torch.equal(updated != 0, keep)
    assert int(keep.sum()) == keep.numel() // 2
    found = error_of(weight, updated, x)
    for name in ("magnitude", "wanda"):
        scores = CRITERIA[name].score(weight, statistics)
        mask = keep_n_m(scores, *pattern) if isinstance(pattern, tuple) else keep_row(scores, 0.5)
        assert found < error_of(weight, weight * mask, x)


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(1, 4),
    st.booleans(),
)
def test_sparsegpt_counts_are_exact(
    rows: int, columns: int, sparsity: float, block: int, ties: bool
):
    weight, x, _ = problem(rows, columns, 20, dtype=torch.float32)
    weight = torch.ones_like(weight) if ties else weight
    updated, keep = sparsegpt(weight, x.T @ x, sparsity, block=block)
    assert int((~keep).sum()) == round(sparsity * keep.numel())
    assert (updated[~keep] == 0).all()
    assert updated.isfinite().all()


@every_update
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_kept_whole_is_bit_identical(name: str, dtype: torch.dtype):
    weight, x, keep = problem(dtype=dtype)
    weight[0, 0] = -0.0
    gram = x.double().T @ x.double()
    before = weight.clone(), gram.clone(), keep.clone()
    updated = UPDATES[name](weight, gram, torch.ones_like(keep))
    assert torch.equal(updated, weight)
    assert updated[0, 0].signbit()
    assert updated.data_ptr() != weight.data_ptr()
    keep[1] = True
    updated = UPDATES[name](weight, gram, keep)
    assert updated.dtype == dtype
    assert torch.equal(updated[1], weight[1])
    assert (updated[~keep] == 0).all()
    assert not torch.equal(updated[0][keep[0]], weight[0][keep[0]])
    keep[1] = before[2][1]
    for now, then in zip((weight, gram, keep), before, strict=True):
        assert torch.equal(now, then)


def test_sparsegpt_that_takes_nothing_is_the_weight():
    weight, x, _ = problem(dtype=torch.bfloat16)
    for pattern in (0.0, (4, 4)):
        updated, keep = sparsegpt(weight, x.float().T @ x.float(), pattern)
        assert keep.all()
        assert torch.equal(updated, weight)


@every_update
def test_half_precision_is_computed_in_float32(name: str):
    weight, x, keep = problem(dtype=torch.bfloat16)
    gram = x.float().T @ x.float()
    updated = UPDATES[name](weight, gram, keep)
    wide = UPDATES[name](weight.float(), gram, keep)
    assert torch.equal(updated, wide.bfloat16())
    assert updated.dtype == torch.bfloat16


@every_update
def test_float32_is_near_float64(name: str):
    weight, x, keep = problem(rows=8, columns=64, tokens=1000)
    gram = x.T @ x
    wide = UPDATES[name](weight, gram, keep)
    narrow = UPDATES[name](weight.float(), gram.float(), keep)
    error = error_of(weight, narrow, x)
    assert error == pytest.approx(error_of(weight, wide, x), rel=1e-2)


@every_update
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_tokens_than_inputs(name: str, tokens: int, dtype: torch.dtype):
    weight, x, keep = problem(tokens=tokens, dtype=dtype)
    updated = UPDATES[name](weight, x.T @ x, keep)
    assert (updated[~keep] == 0).all()
    assert error_of(weight, updated, x) <= error_of(weight, weight * keep, x)
    updated, keep = sparsegpt(weight, x.T @ x, 0.5, damping=0.0)
    assert updated.isfinite().all()


@every_update
def test_dead_inputs(name: str):
    weight, x, keep = problem(tokens=1000)
    x[:, [0, 5]] = 0.0
    gram = x.T @ x
    updated = UPDATES[name](weight, gram, keep)
    assert torch.equal(updated[:, [0, 5]], (weight * keep)[:, [0, 5]])
    alive = [j for j in range(16) if j not in (0, 5)]
    if name != "obs-blocks":
        without = UPDATES[name](weight[:, alive], gram[alive][:, alive], keep[:, alive])
        torch.testing.assert_close(updated[:, alive], without, rtol=1e-8, atol=1e-8)
    rounded = gram.clone()
    rounded[0, 1] = rounded[1, 0] = 1.0  # as centring leaves it
    assert torch.equal(UPDATES[name](weight, rounded, keep), updated)
    nothing = UPDATES[name](weight, torch.zeros_like(gram), keep)
    assert torch.equal(nothing, weight * keep)
    updated, kept = sparsegpt(weight, gram, 0.2)
    assert not kept[:, [0, 5]].any()  # they go first
    assert updated.isfinite().all()


@every_update
def test_one_column_and_no_survivors(name: str):
    weight, x, _ = problem(rows=4, columns=1)
    keep = torch.tensor([[True], [False], [True], [False]])
    assert torch.equal(UPDATES[name](weight, x.T @ x, keep), weight * keep)
    weight, x, keep = problem()
    assert (UPDATES[name](weight, x.T @ x, torch.zeros_like(keep)) == 0).all()


@every_update
def test_the_scale_of_the_inputs_is_nothing(name: str):
    weight, x, keep = problem(dtype=torch.float32)
    gram = x.T @ x
    expected = UPDATES[name](weight, gram, keep)
    for scale in (2.0**-60, 2.0**60):
        scaled = UPDATES[name](weight, gram * scale, keep)
        torch.testing.assert_close(scaled, expected, rtol=1e-3, atol=1e-3)


def test_damping_grows_where_the_factorisation_fails():
    weight, x, keep = problem(tokens=200)
    gram = x.T @ x
    broken = gram - 0.05 * gram.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    broken.diagonal().clamp_(min=1e-3)
    assert torch.linalg.eigvalsh(broken)[0] < 0
    updated = obs(weight, broken, keep, damping=0.0)
    assert torch.equal(updated, obs(weight, broken, keep, damping=0.1))  # the first that is enough
    assert error_of(weight, updated, x) < error_of(weight, weight * keep, x)
    indefinite = torch.eye(16, dtype=torch.float64)
    indefinite[0, 1] = indefinite[1, 0] = 9.0
    for call in (obs, admm):
        with pytest.raises(ExciseError, match="not positive semi-definite"):
            call(weight, indefinite, keep)


GRAM, KEEP = torch.eye(3), torch.tensor([[True, False, True]])


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: obs(torch.ones(1, 3), torch.eye(2), KEEP), r"gram matrix of 3 x 3 .* \(2, 2\)"),
        (lambda: admm(torch.ones(2, 3), GRAM, KEEP), r"mask like itself, not .* \(1, 3\)"),
        (lambda: obs(torch.full((1, 3), torch.nan), GRAM, KEEP), "weight is NaN"),
        (lambda: obs(torch.ones(1, 3), GRAM / 0, KEEP), "gram matrix is NaN"),
        (lambda: obs(torch.ones(1, 3), -GRAM, KEEP), "has -1 on its diagonal"),
        (lambda: sparsegpt(torch.ones(1, 3), GRAM, 1.5), "sparsity is 1.5"),
        (lambda: sparsegpt(torch.ones(1, 3), GRAM, (2, 4)), "3 inputs are no multiple of 4"),
        (
            lambda: obs(
                torch.tensor([[6e4, 1.0, 6e4]]).half(),
                torch.tensor([[1.5, 1.2, 0], [1.2, 1.0, 0], [0, 0, 1]]),
                torch.tensor([[False, True, True]]),
            ),
            "does not fit torch.float16",
        ),
    ],
)
def test_what_cannot_be_updated_is_named(call: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        call()
