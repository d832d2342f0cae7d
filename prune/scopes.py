"""Among which weights scores compete: masks with exact counts.

Everywhere: `sparsity` is the share that goes, from 0 to 1; counts are rounded to the nearest
(half to even) and met exactly; of equal scores the one at the lower position goes first, in row
order and, over several matrices, in the order of the mapping. NaN scores are refused; infinite ones
are in order (`inf` stays as long as anything else can go).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.errors import ExciseError, unknown_name
from .budgets import Bounds, bound_of


SCOPES: dict[str, str] = {
    "row": "within each output unit",
    "layer": "within each matrix",
    "global": "over all matrices",
    "N:M": "N kept of each M consecutive inputs, as in 2:4",
    "block:RxC": "whole blocks of R rows and C columns, within each matrix, as in block:16x16",
}
"""What `parse_scope` reads."""


@dataclass(frozen=True)
class Scope:
    """Among which weights scores compete."""

    kind: Literal["row", "layer", "global", "n:m", "block"]
    size: tuple[int, int] | None = None
    """(n, m) kept and of how many, or (rows, columns) of a block."""

    def __str__(self) -> str:
        if self.size is None:
            return self.kind
        return (
            "{}:{}".format(*self.size) if self.kind == "n:m" else "block:{}x{}".format(*self.size)
        )

    def keep(self, scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
        """Choose within one matrix; N:M has its own sparsity and leaves the one given unread.

        Raises:
            ExciseError: As the function of this scope; `global` needs all matrices at once.
        """
        if self.size is not None and self.kind == "n:m":
            return keep_n_m(scores, *self.size)
        if self.size is not None:
            return keep_block(scores, self.size, sparsity)
        if self.kind == "global":
            raise ExciseError("scope 'global' compares over all matrices: use keep_global")
        return keep_row(scores, sparsity) if self.kind == "row" else keep_layer(scores, sparsity)


def parse_scope(text: str) -> Scope:
    """Read `row`, `layer`, `global`, `2:4` or `block:16x16`; anything else is an ExciseError."""
    if text in ("row", "layer", "global"):
        return Scope(text)
    if found := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text):
        _check_n_m(int(found[1]), int(found[2]))
        return Scope("n:m", (int(found[1]), int(found[2])))
    if found := re.fullmatch(r"block:([1-9][0-9]{,8})x([1-9][0-9]{,8})", text):
        return Scope("block", (int(found[1]), int(found[2])))
    raise unknown_name("scope", text, SCOPES)


def keep_row(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """Keep the highest scores of each row; the same number in each."""
    kept = scores.shape[1] - count_gone(sparsity, scores.shape[1])
    return keep_with_rows(scores, torch.full((len(scores),), kept, device=scores.device))


def keep_with_rows(
    scores: Float[Tensor, "out in"], row_counts: Int[Tensor, " out"]
) -> Bool[Tensor, "out in"]:
    """Keep the highest scores of each row, as many as that row may keep.

    With `row_counts = other.sum(1)` each row has the budget another mask gave it: Wanda inside
    rows, rows by the global Fisher mask.

    Raises:
        ExciseError: Counts of another shape, below 0 or above the row's length.
    """
    _refuse_nan(scores)
    rows, columns = scores.shape
    if row_counts.shape != (rows,):
        raise ExciseError(f"row counts are {tuple(row_counts.shape)} for {rows} rows")
    if rows and not 0 <= int(row_counts.min()) <= int(row_counts.max()) <= columns:
        raise ExciseError(f"row counts leave 0 to {columns}: count what each row keeps")
    gone = (columns - row_counts.to(scores.device))[:, None]
    order = scores.argsort(dim=1, stable=True)
    kept = torch.arange(columns, device=scores.device)[None, :] >= gone
    return torch.empty_like(kept).scatter_(1, order, kept)


def keep_layer(scores: Float[Tensor, "out in"], sparsity: float) -> Bool[Tensor, "out in"]:
    """Keep the highest scores of the matrix."""
    _refuse_nan(scores)
    return keep_but(scores, count_gone(sparsity, scores.numel()))


def keep_n_m(scores: Float[Tensor, "out in"], n: int, m: int) -> Bool[Tensor, "out in"]:
    """Keep the n highest of each m consecutive inputs of a row: 2:4 makes 2 of 4 zero.

    n counts what stays, as in hardware and papers (Mishra et al. 2021, arXiv 2104.08378). The code
    of SparseGPT and Wanda counts what goes; the two meet at 2:4 and 4:8.

    Raises:
        ExciseError: n not from 1 to m, or rows that are no multiple of m long.
    """
    _check_n_m(n, m)
    rows, columns = scores.shape
    if columns % m:
        raise ExciseError(f"{columns} inputs are no multiple of {m}: {n}:{m} does not fit them")
    grouped = scores.reshape(-1, m)  # (out * in / m, m)
    return keep_with_rows(grouped, torch.full((len(grouped),), n)).view(rows, columns)


def keep_block(
    scores: Float[Tensor, "out in"], block: tuple[int, int], sparsity: float
) -> Bool[Tensor, "out in"]:
    """Keep the blocks with the highest mean score, whole; counts are of blocks.

    Raises:
        ExciseError: Blocks that do not tile the matrix.
    """
    (rows, columns), (high, wide) = scores.shape, block
    if high < 1 or wide < 1 or rows % high or columns % wide:
        raise ExciseError(f"blocks of {high} x {wide} do not tile a matrix of {rows} x {columns}")
    tiles = scores.reshape(rows // high, high, columns // wide, wide)  # (R, high, C, wide)
    means = tiles.to(torch.promote_types(scores.dtype, torch.float32)).mean((1, 3))
    kept = keep_layer(means, sparsity)
    return kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)


def keep_global(
    scores: Mapping[str, Float[Tensor, "..."]],
    sparsity: float,
    floor: Bounds = 0.0,
    ceiling: Bounds = 1.0,
) -> dict[str, Bool[Tensor, "..."]]:
    """Keep the highest scores over all matrices, each within its own bounds; see `gone_global`."""
    gone = gone_global(scores, sparsity, floor, ceiling)
    return {name: keep_but(scores[name], gone[name]) for name in gone}


def gone_global(
    scores: Mapping[str, Float[Tensor, "..."]],
    sparsity: float,
    floor: Bounds = 0.0,
    ceiling: Bounds = 1.0,
) -> dict[str, int]:
    """Return how many of each matrix go where scores of all of them compete.

    Takes the lowest scores such that no matrix loses less than its floor or more than its ceiling:
    as if each matrix's lowest were gone up to the floor, its highest were safe from the ceiling on,
    and the rest sorted as one list.

    The threshold is found digit by digit in the scores' bits, 16 at a time, so at no time more
    than one matrix and 64 Ki counts per matrix are held, and nothing is sorted. Each matrix is
    read 4 times (6 in float64): a mapping may compute or load its scores on access.

    Args:
        scores: By name; shapes, precisions and devices may differ.
        sparsity: Share of all weights together that goes.
        floor: Least sparsity of a matrix; its count is rounded up.
        ceiling: Highest sparsity of a matrix; its count is rounded down.

    Raises:
        ExciseError: Bounds that cannot be met with whole counts.
    """
    sizes, dtype = {}, torch.float32
    for name in scores:
        matrix = scores[name]
        _refuse_nan(matrix, f" of {name}")
        sizes[name], dtype = matrix.numel(), torch.promote_types(dtype, matrix.dtype)
    target = count_gone(sparsity, sum(sizes.values()))
    low = {n: math.ceil(bound_of(floor, n) * s - 1e-9 * s) for n, s in sizes.items()}
    high = {n: math.floor(bound_of(ceiling, n) * s + 1e-9 * s) for n, s in sizes.items()}
    for name, size in sizes.items():
        if not 0 <= low[name] <= high[name] <= size:
            raise ExciseError(
                f"{name}: no count of its {size} weights is within floor "
                f"{bound_of(floor, name)} and ceiling {bound_of(ceiling, name)}"
            )
    least, most = sum(low.values()), sum(high.values())
    if not least <= target <= most:
        raise ExciseError(f"{target} weights should go, and the bounds allow {least} to {most}")
    below, equal = _ranks_at_threshold(scores, dtype, target, low, high)
    gone = {n: min(max(below[n], low[n]), high[n]) for n in sizes}
    left = target - sum(gone.values())
    for name in sizes:  # ties at the threshold, in order
        more = min(max(below[name] + equal[name], low[name]), high[name]) - gone[name]
        gone[name] += min(more, left)
        left -= min(more, left)
    return gone


def count_gone(sparsity: float, total: int) -> int:
    """Return how many of `total` go.

    Raises:
        ExciseError: A sparsity out of range.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ExciseError(f"sparsity is {sparsity}: give a share from 0 to 1, as in 0.5")
    return round(sparsity * total)


def keep_but(scores: Float[Tensor, "..."], gone: int) -> Bool[Tensor, "..."]:
    """Keep all but the lowest `gone` scores, of equal ones the last."""
    if gone == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    threshold = flat.kthvalue(gone).values
    keep = flat > threshold
    ties = (flat == threshold).nonzero()[:, 0]
    keep[ties[gone - int((flat < threshold).sum()) :]] = True
    return keep.view(scores.shape)


def _ranks_at_threshold(
    scores: Mapping[str, Tensor],
    dtype: torch.dtype,
    target: int,
    low: Mapping[str, int],
    high: Mapping[str, int],
) -> tuple[dict[str, int], dict[str, int]]:
    """Find the lowest score up to which the matrices, within bounds, hold `target` scores or more.

    Returns:
        How many scores of each matrix are below it, and how many are equal to it.
    """
    below, equal, prefix = dict.fromkeys(low, 0), dict.fromkeys(low, 0), None
    for shift in range(torch.finfo(dtype).bits - 16, -1, -16):
        total, ranks = torch.zeros(1 << 16, dtype=torch.long), {}
        for name in low:
            keys = _ordered_bits(scores[name], dtype)
            if prefix is None:  # the sign is in the first digit
                digits = (keys >> shift) + (1 << 15)
            else:
                digits = (keys[keys >> (shift + 16) == prefix] >> shift) & 0xFFFF
            counts = torch.bincount(digits.flatten(), minlength=1 << 16).cpu()
            ranks[name] = counts.cumsum(0) + below[name]
            total += ranks[name].clamp(low[name], high[name])
        digit = int((total < target).sum())
        prefix = digit - (1 << 15) if prefix is None else (prefix << 16) + digit
        for name, rank in ranks.items():
            below[name] = int(rank[digit - 1]) if digit else below[name]
            equal[name] = int(rank[digit]) - below[name]
    return below, equal


def _ordered_bits(scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return integers in the order of the scores: those of negative numbers are turned round."""
    bits = (scores.to(dtype) + 0.0).view(torch.int64 if dtype == torch.float64 else torch.int32)
    return bits ^ ((bits >> (torch.finfo(dtype).bits - 1)) & torch.iinfo(bits.dtype).max)


def _check_n_m(n: int, m: int) -> None:
    if not 1 <= n <= m:
        raise ExciseError(f"{n}:{m} keeps {n} of each {m}: give 1 to {m} of them, as in 2:4")


def _refuse_nan(scores: Tensor, where: str = "") -> None:
    if bool(scores.isnan().any()):
        raise ExciseError(f"scores{where} are NaN in places: they cannot be put in order")
