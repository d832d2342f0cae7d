"""What stays makes up for what went: new weights of one linear layer under a mask.

All minimise the same error over the calibration tokens, `||X (W_new - W)^T||^2`, which depends on
them through the gram matrix `G = X^T X` alone: `tr((W_new - W) G (W_new - W)^T)`.

All compute in float32, or in float64 if the weight or the gram matrix is; all return the weight's
own dtype, exact zeros where the mask is False, and bit-identical rows where it keeps everything.
Weights of dead inputs (zero on all tokens) that stay are not changed either.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import ExciseError, finer
from .scopes import count_gone, keep_n_m


Weight = Float[Tensor, "out in"]
Gram = Float[Tensor, "in in"]
Keep = Bool[Tensor, "out in"]


def obs(
    weight: Weight, gram: Gram, keep: Keep, *, damping: float = 0.01, block: int = 128
) -> Weight:
    """Update by Optimal Brain Surgeon, columns from left to right, for a mask that is given.

    Each weight that goes hands its error to the columns behind it: `w -= w_j / [H^-1]_jj H^-1_j:`
    with `H` the damped gram matrix of column j and those behind it, through one Cholesky factor of
    the inverse (Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774, section 3). Columns that
    were passed stay as they are: fast, and not optimal (see `admm`).

    Args:
        weight: Dense weights.
        gram: Sum over tokens of `x_i x_j`.
        keep: True where a weight stays.
        damping: Added to the diagonal, as a share of its mean; tenfold more, up to the mean
            itself, as long as the Cholesky factorisation fails.
        block: Columns whose updates of later columns are put together: speed only.

    Raises:
        ExciseError: Shapes that do not fit, numbers that are not finite, or a gram matrix that is
            far from positive semi-definite.
    """
    work, hessian, dead = _prepared(weight, gram, keep)
    if bool(keep.all()):
        return weight.clone()
    _sweep(work, _inverse_factor(hessian, damping), lambda _, at: keep[:, at], block, block)
    return _finished(weight, work, keep, dead)


def sparsegpt(
    weight: Weight,
    gram: Gram,
    pattern: float | tuple[int, int],
    *,
    damping: float = 0.01,
    block: int = 128,
) -> tuple[Weight, Keep]:
    """Choose a mask and update at once (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1).

    As `obs`, with the mask of each block of columns chosen when the sweep gets there, from weights
    that earlier columns have already changed: lowest `w^2 / [H^-1]_jj` with H of the columns that
    are left (the code's squared diagonal of the Cholesky factor), in the whole block over all rows,
    or of each m inputs in a row. Different from the authors' code: counts are exact (theirs takes
    one weight too many per block, and all ties), and dead inputs, though first to go, count.

    Args:
        weight: Dense weights.
        gram: Sum over tokens of `x_i x_j`.
        pattern: Sparsity, or (n, m) to keep n of each m consecutive inputs.
        damping: As in `obs`.
        block: Columns among which weights compete.

    Returns:
        The new weights, and True where a weight stayed.

    Raises:
        ExciseError: As `obs`; or a pattern that does not fit.
    """
    keep = torch.ones_like(weight, dtype=torch.bool)
    work, hessian, dead = _prepared(weight, gram, keep)
    factor = _inverse_factor(hessian, damping)
    price = factor.diagonal().square().masked_fill(dead, torch.inf)
    done = gone = 0

    def choose(values: Tensor, at: slice) -> Tensor:
        scores = values.square() / price[at]
        if isinstance(pattern, tuple):
            return keep_n_m(scores, *pattern)
        nonlocal done, gone
        done += scores.numel()
        now = count_gone(pattern, done) - gone
        gone += now
        chosen = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
        chosen[scores.flatten().argsort(stable=True)[:now]] = False
        return chosen.view_as(scores)

    group = block
    if isinstance(pattern, tuple):
        group = pattern[1]
        keep_n_m(work[:1], *pattern)  # refuses what does not fit, before anything is done
        block = max(block - block % group, group)
    keep = _sweep(work, factor, choose, block, group)
    if bool(keep.all()):
        return weight.clone(), keep
    return _finished(weight, work, keep, dead), keep


def admm(
    weight: Weight, gram: Gram, keep: Keep, *, iterations: int = 20, damping: float = 0.1
) -> Weight:
    """Update by the alternating direction method of multipliers, for a mask that is given.

    `Z = (W + U) M; U += W - Z; W = (G + I)^-1 (G W_0 + Z - U)` with columns divided by the norm of
    their input, so that one penalty of 1 suits them all, and one factorisation (Boza 2024, "Fast
    and Effective Weight Update for Pruned LLMs", arXiv 2401.02938, and its code). Converges to the
    optimum of the damped error; 20 iterations are the author's.

    Args:
        weight: Dense weights.
        gram: Sum over tokens of `x_i x_j`.
        keep: True where a weight stays.
        iterations: Steps; none leaves what stays as it was.
        damping: Added to the diagonal as a share of it: holds the weights near the dense ones.

    Raises:
        ExciseError: As `obs`.
    """
    dense, hessian, dead = _prepared(weight, gram, keep)
    if bool(keep.all()):
        return weight.clone()
    norm = hessian.diagonal().sqrt()
    hessian = hessian / norm / norm[:, None]
    hessian.diagonal().mul_(1 + damping)
    dense = dense * norm
    target = dense @ hessian
    hessian.diagonal().add_(1.0)
    inverse = torch.cholesky_inverse(_cholesky(hessian, 0.0))
    current, multiplier = dense, torch.zeros_like(dense)
    for _ in range(iterations):
        masked = (current + multiplier) * keep
        multiplier += current - masked
        current = (target + masked - multiplier) @ inverse
    return _finished(weight, (current + multiplier) / norm, keep, dead)


def reconstruction_error(weight: Weight, updated: Weight, gram: Gram) -> float:
    """Return `||X (W_new - W)^T||^2`: squared units of the output, summed over tokens and rows."""
    difference = updated.to(gram) - weight.to(gram)
    return float(((difference @ gram) * difference).sum(dtype=torch.float64))


def _prepared(weight: Tensor, gram: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check, and return copies to work on: weight, gram matrix without dead inputs, which are dead.

    A dead input has a row and column of zeros; its diagonal becomes the mean of the others.
    """
    rows, columns = weight.shape
    if gram.shape != (columns, columns) or keep.shape != weight.shape:
        raise ExciseError(
            f"a weight of {rows} x {columns} needs a gram matrix of {columns} x {columns} and a "
            f"mask like itself, not {tuple(gram.shape)} and {tuple(keep.shape)}"
        )
    for what, tensor in (("weight", weight), ("gram matrix", gram)):
        if not bool(tensor.isfinite().all()):
            raise ExciseError(f"the {what} is NaN or infinite in places: {finer(tensor.dtype)}")
    lowest, highest = gram.diagonal().aminmax() if columns else (torch.zeros(()),) * 2
    if float(lowest) < -1e-3 * abs(float(highest)):
        raise ExciseError(f"the gram matrix has {float(lowest):g} on its diagonal: squares only")
    wide = torch.float64 in (weight.dtype, gram.dtype)
    dtype = torch.float64 if wide else torch.float32
    work = weight.detach().to(dtype, copy=True)
    hessian = gram.detach().to(weight.device, dtype, copy=True)
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    hessian[dead], hessian[:, dead] = 0.0, 0.0
    alive = diagonal[~dead]
    diagonal.masked_fill_(dead, float(alive.mean()) if len(alive) else 1.0)
    return work, hessian, dead


def _cholesky(hessian: Tensor, damping: float) -> Tensor:
    """Return the lower factor of a damped matrix; damping grows as long as there is none."""
    mean, tried = hessian.diagonal().mean(), damping
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(tried * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed) and bool(factor.isfinite().all()):
            return factor
        if tried >= 1.0:
            raise ExciseError(
                f"the gram matrix is not positive semi-definite, even damped by {tried:g} of its "
                "mean diagonal: was it summed in half precision? Gather it again in float32"
            )
        tried = min(max(10 * tried, 1e-6), 1.0)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with `U^T U` the inverse of the damped matrix.

    With rows and columns in reverse order, the lower factor becomes R with `H = R R^T`, R upper;
    then `U = R^-1`: no inverse is ever factorised, which in float32 is where it would fail.
    """
    reverse = _cholesky(hessian.flip(0, 1), damping).flip(0, 1)
    identity = torch.eye(len(reverse), dtype=reverse.dtype, device=reverse.device)
    return torch.linalg.solve_triangular(reverse, identity, upper=True)


def _sweep(
    work: Tensor,
    factor: Tensor,
    choose: Callable[[Tensor, slice], Tensor],
    block: int,
    group: int,
) -> Tensor:
    """Pass over the columns once, updating in place; returns what stayed.

    Args:
        work: Weights, changed in place.
        factor: Upper factor of the inverse Hessian.
        choose: Given the current values of a group of columns and where they are, what stays.
        block: Columns between two updates of all that is behind.
        group: Columns chosen at once, at most a block.
    """
    keep = torch.ones_like(work, dtype=torch.bool)
    columns = work.T.contiguous()  # (in, out): a column of weights lies together
    gone = torch.zeros_like(columns[:group])
    for start in range(0, len(columns), block):
        end = min(start + block, len(columns))
        piece, corner = columns[start:end], factor[start:end, start:end]
        errors = torch.zeros_like(piece)
        for i in range(end - start):
            if i % group == 0:
                at = slice(start + i, min(start + i + group, end))
                keep[:, at] = choose(columns[at].T, at)
                gone = (~keep[:, at]).T
            errors[i] = piece[i] * gone[i % group] / corner[i, i]
            piece[i:].addr_(corner[i, i:], errors[i], alpha=-1)
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    work.copy_(columns.T)
    return keep


def _finished(weight: Tensor, work: Tensor, keep: Tensor, dead: Tensor) -> Tensor:
    """Return the update in the weight's dtype: zeros exact, whole rows and dead inputs untouched.

    Raises:
        ExciseError: An update too large for the dtype, or not finite.
    """
    untouched = keep.all(1, keepdim=True) | dead
    updated = torch.where(untouched, weight, work.to(weight.dtype)).masked_fill(~keep, 0.0)
    if not bool(updated.isfinite().all()):
        raise ExciseError(
            f"the update does not fit {weight.dtype}: raise its damping, or {finer(weight.dtype)}"
        )
    return updated
