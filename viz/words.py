"""What a heatmap says in words: its tooltips, its caption and its summary for a screen reader."""

import math
from dataclasses import dataclass

from .colour import Scale
from .grid import Cell, Grid
from .text import number, shorten


@dataclass(frozen=True)
class Labels:
    """What the parts of a heatmap are called.

    Attributes:
        title: Heading of the picture.
        row: What a row is, such as `layer`.
        column: What a column is, such as `head`.
        value: What the numbers are, such as `relevance`.
        interval: What the intervals are, such as `95 % bootstrap interval`.
    """

    title: str
    row: str
    column: str
    value: str
    interval: str

    def name(self, cell: Cell, width: int = 80) -> str:
        """Where a cell is; each label is cut at `width` characters."""
        where = str(cell.column)
        if math.isnan(cell.value) and cell.last > cell.first:
            where = f"{cell.first} to {cell.last}"
        return f"{shorten(self.row, width)} {cell.row}, {shorten(self.column, width)} {where}"

    def tooltip(self, cell: Cell) -> str:
        """Where a cell is, its number, its interval, and what else it stands for."""
        if math.isnan(cell.value):
            return f"{self.name(cell)}: NaN, not a number"
        lines = [f"{self.name(cell)}: {number(cell.value, 6, sign=True)}"]
        if cell.low is not None and cell.high is not None:
            ends = f"{number(cell.low, 6, sign=True)} to {number(cell.high, 6, sign=True)}"
            lines.append(f"{self.interval}: {ends}" + " (includes 0)" * cell.crosses_zero)
        if cell.last > cell.first:
            missing = f", {cell.missing} of them NaN" if cell.missing else ""
            lines.append(f"largest of {self.column} {cell.first} to {cell.last}{missing}")
        return "\n".join(lines)


def caption(grid: Grid, scale: Scale, labels: Labels) -> list[str]:
    """Sentences that a reader needs so as not to be misled by the picture."""
    cells = grid.flat()
    lines = []
    if grid.bin_size > 1:
        lines.append(
            f"{grid.columns} columns in {len(grid.cells[0])}: each cell stands for up to "
            f"{grid.bin_size} neighbours ({labels.column}) and shows the one of largest magnitude."
        )
    bounded = [cell for cell in cells if cell.low is not None and not math.isnan(cell.value)]
    if bounded:
        crossing = sum(cell.crosses_zero for cell in bounded)
        lines.append(f"{labels.interval}: includes 0 in {crossing} of {len(bounded)} cells.")
    if missing := sum(cell.missing for cell in cells):
        total = len(grid.cells) * grid.columns
        lines.append(f"{missing} of {total} values are NaN; a cell without any number is hatched.")
    if beyond := sum(not scale.holds(cell.value) for cell in cells):
        lines.append(f"{beyond} of {len(cells)} cells lie beyond the scale.")
    if not any(cell.value for cell in cells):
        lines.append("Every value is zero.")
    return lines


def summary(grid: Grid, scale: Scale, labels: Labels, notable: list[Cell]) -> str:
    """The picture in three sentences, for readers who do not see it."""
    lowest = number(-scale.limit if scale.signed else 0.0, 3)
    found = "; ".join(
        f"{labels.name(cell)}: {number(cell.value, 3, sign=True)}" for cell in notable
    )
    return (
        f"{labels.title}. Heatmap of {len(grid.cells)} rows ({labels.row}) and {grid.columns} "
        f"columns ({labels.column}), colours from {lowest} to {number(scale.limit, 3)}. "
        + (f"Largest magnitudes: {found}." if found else "No value stands out.")
    )
