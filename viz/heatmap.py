"""A heatmap of layers by heads, or of layers by neurons, as one SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import svg
from .colour import Scale
from .grid import Cell, Grid, build
from .text import escape, exact, number, shorten, wrap
from .words import Labels, caption, summary


NOTABLE = 5
"""How many cells are outlined and listed."""


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in pixels.

    Attributes:
        grid: The cells.
        top: Upper end of the plot.
        left: Left end of the plot.
    """

    grid: Grid
    top: float
    left: float = 50.0

    @property
    def wide(self) -> float:
        """Width of a cell and the gap beside it."""
        return min(max(596.0 / len(self.grid.cells[0]), 8.0), 54.0)

    @property
    def tall(self) -> float:
        """Height of a cell and the gap below it."""
        return min(max(470.0 / len(self.grid.cells), 8.0), 26.0)

    @property
    def right(self) -> float:
        """Right end of the plot."""
        return self.left + self.wide * len(self.grid.cells[0])

    @property
    def bottom(self) -> float:
        """Lower end of the plot."""
        return self.top + self.tall * len(self.grid.cells)

    def place(self, cell: Cell) -> tuple[float, float, float, float]:
        """Left, top, width and height of a cell; row 0 stands at the bottom."""
        gap = 1.0 if min(self.wide, self.tall) >= 10 else 0.6
        x = self.left + self.wide * (cell.first // self.grid.bin_size)
        y = self.bottom - self.tall * (cell.row + 1)
        return x, y, self.wide - gap, self.tall - gap


def heatmap(
    values: Sequence[Sequence[float]],
    *,
    title: str,
    row_label: str = "layer",
    column_label: str = "head",
    value_label: str = "relevance",
    low: Sequence[Sequence[float]] | None = None,
    high: Sequence[Sequence[float]] | None = None,
    interval: str | None = None,
    scale: Scale | None = None,
    max_columns: int = 64,
) -> str:
    """Draws a grid of numbers, row 0 at the bottom, as layers are stacked.

    Each cell names itself and its number on hovering and holds the exact number in `data-value`.
    The largest magnitudes are outlined, carry their sign and are listed beside the plot.

    Args:
        values: Numbers, `(rows, columns)`; NaN is drawn hatched.
        title: Heading of the picture.
        row_label: What a row is.
        column_label: What a column is.
        value_label: What the numbers are.
        low: Lower ends of confidence intervals, of the same shape.
        high: Upper ends of confidence intervals, of the same shape.
        interval: What the intervals are, such as `95 % bootstrap interval`.
        scale: The colour scale; give the same one to pictures that are to be compared. `None`
            takes the tightest: symmetric if a value is negative, else from zero upwards.
        max_columns: With more columns than this, a cell stands for several neighbours, shows the
            one of largest magnitude, and the caption says so.

    Returns:
        One `<svg>` element, well-formed XML, which also stands alone as a file.

    Raises:
        ValueError: An empty or ragged grid, or intervals that do not fit it.
    """
    labels = Labels(title, row_label, column_label, value_label, interval or "confidence interval")
    grid = build(values, low, high, max_columns=max_columns)
    scale = scale or Scale.fit(cell.value for cell in grid.flat())
    notable = grid.largest(NOTABLE)

    panel = max([170.0, *(78 + 7.1 * len(labels.name(cell, 10)) for cell in notable)])
    width = max(_Layout(grid, 0.0).right + 28 + panel, 560.0)
    heading = wrap(title, int(width / 9.2), 3)
    layout = _Layout(grid, 18.0 * len(heading) + 14)
    parts = [svg.text(0, 16 + 18 * at, line, "head") for at, line in enumerate(heading)]
    parts += _cells(layout, scale, labels, notable) + _axes(layout, labels)
    parts += svg.legend(layout.right + 28, layout.top - 2, scale, shorten(value_label, 28))
    listed, list_end = _list(layout, scale, labels, notable)
    parts += listed

    below = max(layout.bottom + 42, list_end)
    lines = [line for sentence in caption(grid, scale, labels)
             for line in wrap(sentence, int(width / 6.2))]  # fmt: skip
    parts += [svg.text(0, below + 14 + 17 * at, line, "soft") for at, line in enumerate(lines)]
    height = below + 10 + 17 * len(lines)
    return svg.document(width, height, summary(grid, scale, labels, notable), parts)


def _cells(layout: _Layout, scale: Scale, labels: Labels, notable: list[Cell]) -> list[str]:
    cells = []
    for cell in layout.grid.flat():
        place = layout.place(cell)
        data = f' data-value="{exact(cell.value)}"'
        if cell.low is not None and cell.high is not None:
            data += f' data-low="{exact(cell.low)}" data-high="{exact(cell.high)}"'
        tooltip = f"<title>{escape(labels.tooltip(cell))}</title>"
        cells.append(svg.box(*place, scale.css(cell.value), tooltip, data))
        if math.isnan(cell.value):
            cells.append(svg.hatch(*place))
    marks = [
        svg.outline(*layout.place(cell), cell.value, scale.css(cell.value)) for cell in notable
    ]
    gaps, frames = [gap for gap, _ in marks], [frame for _, frame in reversed(marks)]
    return ["<g>", *cells, "</g>", '<g class="marks">', *gaps, *frames, "</g>"]


def _axes(layout: _Layout, labels: Labels) -> list[str]:
    grid, wide, tall = layout.grid, layout.wide, layout.tall
    parts = []
    for row in range(0, len(grid.cells), svg.spacing(tall, 17)):
        y = layout.bottom - tall * (row + 0.5) + 4
        parts.append(svg.text(layout.left - 8, y, str(row), "tick end"))
    first_row = grid.cells[0]
    widest = 7.0 * len(str(grid.columns - 1)) + 12
    for index in range(0, len(first_row), svg.spacing(wide, widest)):
        x = layout.left + wide * (index + 0.5)
        parts.append(svg.text(x, layout.bottom + 15, str(first_row[index].first), "tick mid"))
    middle = (layout.top + layout.bottom) / 2
    turned = f' transform="rotate(-90 12 {middle:g})"'
    parts.append(svg.text(12, middle, shorten(labels.row, 28), "soft mid", turned))
    centre = (layout.left + layout.right) / 2
    parts.append(svg.text(centre, layout.bottom + 33, shorten(labels.column, 40), "soft mid"))
    return parts


def _list(
    layout: _Layout, scale: Scale, labels: Labels, notable: list[Cell]
) -> tuple[list[str], float]:
    """The notable cells in words, beside the plot, and where their list ends."""
    if not notable:
        return [], layout.top
    x, line = layout.right + 28, layout.top + 184
    parts = [svg.text(x, line, "largest", "soft")]
    for cell in notable:
        line += 21
        parts.append(svg.box(x, line - 9.5, 11, 11, scale.css(cell.value)))
        value = number(cell.value, 3, sign=scale.signed, zeros=True)
        parts.append(svg.text(x + 66, line, value, "end"))
        parts.append(svg.text(x + 76, line, labels.name(cell, 10), "soft"))
        if cell.low is not None and cell.high is not None:
            line += 17
            ends = (number(end, 3, sign=scale.signed, zeros=True) for end in (cell.low, cell.high))
            parts.append(svg.text(x + 76, line - 2, " to ".join(ends), "tick"))
    return parts, line + 12
