"""A grid of numbers, checked and made narrow enough to draw: arithmetic without any drawing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One rectangle of the picture: a single number, or the extreme one of neighbouring columns.

    Attributes:
        row: Its row.
        column: The column the value comes from.
        value: The value; NaN only if the cell holds nothing else.
        first: The first column the cell stands for.
        last: The last column the cell stands for.
        low: Lower end of the value's interval, if there is one.
        high: Upper end of the value's interval, if there is one.
        missing: How many of the cell's numbers are NaN.
    """

    row: int
    column: int
    value: float
    first: int
    last: int
    low: float | None = None
    high: float | None = None
    missing: int = 0

    @property
    def crosses_zero(self) -> bool:
        """Whether the interval leaves the sign open."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high


@dataclass(frozen=True)
class Grid:
    """Cells in rows, and how many columns each of them stands for.

    Attributes:
        cells: Row by row, every row equally long.
        columns: Columns before neighbours were put together.
        bin_size: Columns in one cell; 1 if each column has its own.
    """

    cells: tuple[tuple[Cell, ...], ...]
    columns: int
    bin_size: int

    def flat(self) -> list[Cell]:
        """All cells, row by row."""
        return [cell for row in self.cells for cell in row]

    def largest(self, count: int) -> list[Cell]:
        """The `count` cells of largest non-zero magnitude, largest first, ties in reading order."""
        real = [cell for cell in self.flat() if not math.isnan(cell.value) and cell.value]
        return sorted(real, key=lambda cell: -abs(cell.value))[:count]


def build(
    values: Sequence[Sequence[float]],
    low: Sequence[Sequence[float]] | None = None,
    high: Sequence[Sequence[float]] | None = None,
    *,
    max_columns: int = 64,
) -> Grid:
    """Checks the numbers and puts neighbouring columns together where there are too many.

    Args:
        values: Numbers, `(rows, columns)`.
        low: Lower interval ends of the same shape; needs `high`.
        high: Upper interval ends of the same shape; needs `low`.
        max_columns: The most cells in one row. With more columns a cell stands for several
            neighbours and holds the one of largest magnitude.

    Raises:
        ValueError: An empty or ragged grid, or intervals that do not fit it.
    """
    if max_columns < 1:
        raise ValueError(f"max_columns must be at least 1, got {max_columns}")
    if (low is None) != (high is None):
        raise ValueError("an interval needs both ends: give low and high, or neither")
    rows = _numbers(values, "values")
    lows = None if low is None else _numbers(low, "low", rows)
    highs = None if high is None else _numbers(high, "high", rows)
    columns = len(rows[0])
    size = math.ceil(columns / max_columns)
    cells = tuple(
        tuple(
            _cell(r, range(first, min(first + size, columns)), row,
                  lows[r] if lows else None, highs[r] if highs else None)
            for first in range(0, columns, size)
        )
        for r, row in enumerate(rows)
    )  # fmt: skip
    return Grid(cells, columns, size)


def _cell(
    r: int, span: range, row: list[float], low: list[float] | None, high: list[float] | None
) -> Cell:
    present = [column for column in span if not math.isnan(row[column])]
    column = max(present, key=lambda at: abs(row[at]), default=span[0])
    return Cell(
        row=r,
        column=column,
        value=row[column],
        first=span[0],
        last=span[-1],
        low=low[column] if low else None,
        high=high[column] if high else None,
        missing=len(span) - len(present),
    )


def _numbers(
    grid: Sequence[Sequence[float]], name: str, like: list[list[float]] | None = None
) -> list[list[float]]:
    rows = [[float(value) for value in row] for row in grid]
    if not rows or not rows[0]:
        raise ValueError(f"{name} is empty: a heatmap needs at least one row and one column")
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{name} is ragged: row 0 has {len(rows[0])} columns, row {index} has {len(row)}"
            )
    if like is not None and (len(rows), len(rows[0])) != (len(like), len(like[0])):
        raise ValueError(
            f"{name} is {len(rows)} x {len(rows[0])}, values are {len(like)} x {len(like[0])}"
        )
    return rows
