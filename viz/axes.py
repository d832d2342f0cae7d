"""The axes of a chart: from numbers to pixels, round ticks, and the lines behind the data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from . import svg
from .text import escape, number, shorten, wrap


_SOFT, _LINE = "#666c75", "#d5d3ce"
_LETTER = 6.0
"""Width of a letter of a tick in pixels, generously."""

_LONGEST = 32
"""Letters of a tick or a name before it is cut; its tooltip holds the rest."""


@dataclass(frozen=True)
class Axis:
    """A range of numbers and the ticks in it.

    Attributes:
        low: The number at the start.
        high: The number at the end.
        ticks: Numbers and what is written at them, ascending.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    @classmethod
    def linear(cls, values: Iterable[float], *, whole: bool = True, parts: int = 5) -> "Axis":
        """An axis with ticks at round numbers.

        Args:
            values: Finite numbers that must fit; none at all gives 0 to 1.
            whole: Let both ends be ticks, and start at zero when that wastes little room. Otherwise
                the axis ends at the smallest and the largest value.
            parts: About how many ticks.

        Raises:
            ValueError: A magnitude is beyond 1e300.
        """
        low, high = _range(values)
        if whole and 0 <= low <= 0.4 * high:
            low = 0.0
        step = _round_up((high - low) / parts)
        first, last = low / step, high / step
        if whole:
            first, last = math.floor(first + 1e-9), math.ceil(last - 1e-9)
            low, high = first * step, last * step
        digits = 2 + math.ceil(max(math.log10(max(abs(low), abs(high)) / step), 2))
        marks = [at * step for at in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)]
        return cls(low, high, [(mark, number(mark, digits)) for mark in marks])

    @classmethod
    def logarithmic(cls, values: Iterable[float]) -> "Axis":
        """A logarithmic axis with ticks at 1, 2, 5, 10, ..., or at powers of ten if it is long.

        Args:
            values: Finite numbers above zero; none at all gives 1 to 10.

        Raises:
            ValueError: A value is not positive.
        """
        found = list(values) or [1.0, 10.0]
        low, high = min(found), max(found)
        if low <= 0:
            raise ValueError(f"a logarithmic axis needs numbers above 0, got {low!r}")
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = range(first, last + 2)
        marks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
        start = max((mark for mark in marks if 0 < mark <= low), default=low)
        top = max(high, start * 1.5)
        end = min((mark for mark in marks if top <= mark < math.inf), default=top)
        if last - first > 3:
            marks = [float(f"1e{power}") for power in powers[:: math.ceil((last - first) / 8)]]
        ticks = [(mark, number(mark)) for mark in marks if start <= mark <= end]
        return cls(start, end, ticks, log=True)

    @classmethod
    def named(cls, names: Mapping[float, str], values: Iterable[float]) -> "Axis":
        """An axis whose ticks are named positions; `values` are further numbers that must fit."""
        low, high = _range([*names, *values])
        return cls(low, high, sorted(names.items()))

    def share(self, value: float) -> float:
        """Where a number stands: 0 at the start of the axis, 1 at its end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


@dataclass(frozen=True)
class Frame:
    """A plot with its heading, its axes and what stands around it.

    Attributes:
        title: Heading of the picture.
        x_label: What runs to the right.
        y_label: What runs upwards; written above the axis.
        x: The axis to the right.
        y: The axis upwards.
        width: Width of the plot in pixels.
        height: Height of the plot in pixels.
        inset: Free pixels at both ends of the x axis.
        names: Names that stand at the right of the plot.
    """

    title: str
    x_label: str
    y_label: str
    x: Axis
    y: Axis
    width: float = 540.0
    height: float = 300.0
    inset: float = 0.0
    names: Sequence[str] = ()

    @property
    def left(self) -> float:
        """Left end of the plot."""
        widest = max((len(name) for _, name in self.y.ticks), default=1)
        overhang = self._reach * 0.82 - self.inset if self.tilted else 0.0
        return round(max(14 + _LETTER * widest, overhang))

    @property
    def right(self) -> float:
        """Right end of the plot."""
        return self.left + self.width

    @property
    def top(self) -> float:
        """Upper end of the plot."""
        return 18.0 * len(self._heading) + 40

    @property
    def bottom(self) -> float:
        """Lower end of the plot."""
        return self.top + self.height

    @property
    def total(self) -> float:
        """Width of the picture."""
        widest = max((min(len(name), _LONGEST) for name in self.names), default=0)
        return round(self.right + (40 + 6.8 * widest if widest else 20))

    @property
    def tilted(self) -> bool:
        """Whether the names on the x axis are too long to stand side by side."""
        return self._reach > min(self._room - 8, 2 * self.inset + 40)

    @property
    def _reach(self) -> float:
        return _LETTER * max((min(len(name), _LONGEST) for _, name in self.x.ticks), default=0)

    @property
    def _room(self) -> float:
        """Pixels between the two nearest ticks of the x axis."""
        marks = [self.x.share(mark) * (self.width - 2 * self.inset) for mark, _ in self.x.ticks]
        gaps = (after - before for before, after in pairwise(marks))
        return min(gaps, default=self.width)

    @property
    def _heading(self) -> list[str]:
        return wrap(self.title, int(self.total / 9.2), 3)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point, to a hundredth."""
        right = self.left + self.inset + self.x.share(x) * (self.width - 2 * self.inset)
        return round(right, 2), round(self.bottom - self.y.share(y) * self.height, 2)

    def document(self, parts: Sequence[str], notes: Sequence[str], summary: str) -> str:
        """The picture: heading, axes, `parts` on top of them, and `notes` below.

        Args:
            parts: Elements.
            notes: Sentences that a reader needs so as not to be misled.
            summary: What the picture says, in words; the title and the notes are added.
        """
        ticks, end = self._x_ticks()
        end += 20
        centre = self.left + self.width / 2
        axes = [
            *(svg.text(0, 16 + 18 * at, line, "head") for at, line in enumerate(self._heading)),
            svg.text(0, self.top - 18, shorten(self.y_label, int(self.total / 6.2)), "soft"),
            svg.text(centre, end, shorten(self.x_label, int(self.width / 6.2)), "soft mid"),
            *self._y_ticks(),
            *ticks,
        ]
        lines = [line for note in notes for line in wrap(note, int(self.total / 6.2))]
        below = [svg.text(0, end + 28 + 17 * at, line, "soft") for at, line in enumerate(lines)]
        height = end + 10 + (17 * len(lines) + 14 if lines else 0)
        words = " ".join([f"{self.title}.", summary, *notes])
        return svg.document(self.total, height, words, [*axes, *parts, *below])

    def _y_ticks(self) -> list[str]:
        parts = []
        for mark, name in self.y.ticks:
            y = round(self.bottom - self.y.share(mark) * self.height, 2)
            parts.append(rule(self.left, y, self.right, y))
            parts.append(svg.text(self.left - 8, y + 4, name, "tick end"))
        return parts

    def _x_ticks(self) -> tuple[list[str], float]:
        """The ticks of the x axis and where they end; names that would touch are left out."""
        parts, free, bottom = [], -math.inf, self.bottom
        for mark, name in self.x.ticks:
            x, _ = self.place(mark, self.y.low)
            parts.append(rule(x, bottom, x, bottom + 5))
            if x < free:
                continue
            short = shorten(name, _LONGEST)
            if self.tilted:
                turn = f' transform="rotate(-35 {x + 4:g} {bottom + 16:g})"'
                label, free = svg.text(x + 4, bottom + 16, short, "tick end", turn), x + 18
            else:
                label = svg.text(x, bottom + 18, short, "tick mid")
            parts.append(titled(label, name) if short != name else label)
        return parts, bottom + (14 + 0.58 * self._reach if self.tilted else 18)


def rule(x1: float, y1: float, x2: float, y2: float, css: str = "") -> str:
    """A thin straight line; `css` is `even` for a line to compare with."""
    colour = _SOFT if css else _LINE
    css = f' class="{css}"' if css else ""
    return f'<line{css} x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"/>'


def titled(element: str, words: str) -> str:
    """An element with a tooltip."""
    return f"<g><title>{escape(words)}</title>{element}</g>"


def key_text(x: float, y: float, name: str) -> str:
    """One of the names at the right of a plot, cut if it is long."""
    short = shorten(name, _LONGEST)
    label = svg.text(x, y, short)
    return titled(label, name) if short != name else label


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Moves positions apart, each as near to where it wants to be as its neighbours allow.

    >>> spread([50, 10, 52], 17, 0, 100)
    [50, 10, 67]
    >>> spread([99, 98], 17, 0, 100)
    [100, 83]
    """
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    places = list(wanted)
    limit = low
    for at in order:
        places[at] = max(places[at], limit)
        limit = places[at] + gap
    limit = high
    for at in reversed(order):
        places[at] = min(places[at], limit)
        limit = places[at] - gap
    return places


def _range(values: Iterable[float]) -> tuple[float, float]:
    """The smallest and the largest value, kept apart if they are one."""
    found = list(values) or [0.0, 1.0]
    low, high = float(min(found)), float(max(found))
    size = max(abs(low), abs(high))
    if size > 1e300:
        raise ValueError(f"numbers of up to {size!r} are too large to be drawn")
    if high - low <= 1e-9 * max(size, 1e-290):
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    return low, high


def _round_up(size: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size))
    return next(f * power for f in (1, 2, 5, 10) if f * power >= size * (1 - 1e-9))
