"""Points, the series they form, and a series drawn in its own colour and shape."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .axes import Frame, key_text, spread
from .colour import fallback
from .text import escape, exact


_COLOURS = ("xc-n6", "xc-p6", "xc-s5", "xc-p8")
_SHAPES = (  # of about equal areas
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.8L5.4 3.8H-5.4z",
    "M0 -5.7L5.7 0L0 5.7L-5.7 0z",
)
MOST = 2 * len(_COLOURS)
"""How many series can be told apart; a second round of colours has dashed lines, hollow dots."""


@dataclass(frozen=True)
class Point:
    """A measured point.

    Attributes:
        x: Where it stands to the right.
        y: Where it stands upwards.
        low: Lower end of the interval of `y`.
        high: Upper end of the interval of `y`.
        label: What the tooltip adds; in a scatter, all it says. An id rather than a prompt.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""

    def __post_init__(self):
        if (self.low is None) != (self.high is None):
            raise ValueError(f"an interval has both ends or none, got {self.low} and {self.high}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down")

    @property
    def finite(self) -> bool:
        """Whether the point can be drawn."""
        return math.isfinite(self.x) and math.isfinite(self.y)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, if they can be drawn."""
        if self.low is None or self.high is None or not math.isfinite(self.high - self.low):
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Series:
    """Points that one line joins, in their order.

    Attributes:
        name: Stands where the line ends.
        points: At least one. A point that is not finite leaves a gap in the line.
    """

    name: str
    points: Sequence[Point]

    def __post_init__(self):
        if not self.points:
            raise ValueError(f"series {self.name!r} has no points")

    @property
    def drawn(self) -> list[Point]:
        """The points that can be drawn."""
        return [point for point in self.points if point.finite]


@dataclass(frozen=True)
class Trace:
    """One series in a frame: everything that is drawn in its colour.

    Attributes:
        frame: Where it is drawn.
        series: Its points.
        index: Which series it is; decides on colour, shape and dashes.
        shift: Pixels to the right of where it stands.
    """

    frame: Frame
    series: Series
    index: int
    shift: float = 0.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point."""
        right, up = self.frame.place(x, y)
        return round(right + self.shift, 2), up

    @property
    def end(self) -> tuple[float, float]:
        """Where the line ends; without any point, the corner of the plot."""
        last = self.series.drawn[-1:]
        return self.at(last[0].x, last[0].y) if last else (self.frame.left, self.frame.bottom)

    def paint(self, css: str, kind: str = "fill") -> str:
        """Class and colour; the plain colour is for programs that do not know CSS variables."""
        colour = _COLOURS[self.index % len(_COLOURS)]
        second = " second" * (self.index >= len(_COLOURS))
        return f'class="{css} {colour}{second}" {kind}="{fallback(colour)}"'

    def curve(self) -> str:
        """The line through the points, with a gap where one cannot be drawn."""
        runs = _runs(self.series.points, [point.finite for point in self.series.points])
        path = "".join(_path([self.at(point.x, point.y) for point in run]) for run in runs)
        return f'<path {self.paint("curve", "stroke")} stroke-width="2" fill="none" d="{path}"/>'

    def intervals(self, *, band: bool) -> list[str]:
        """The bar of each interval, behind them a band where neighbours have one."""
        points = self.series.points
        runs = _runs(points, [point.finite and point.interval is not None for point in points])
        parts = []
        for run in runs:
            ends = [(point.x, point.interval) for point in run if point.interval]
            lower, upper = ([self.at(x, pair[side]) for x, pair in ends] for side in (0, 1))
            if band and len(run) > 1:
                shape = _path([*upper, *reversed(lower)])
                parts.append(f'<path {self.paint("band")} fill-opacity="0.11" d="{shape}z"/>')
            for (x, y1), (_, y2) in zip(lower, upper, strict=True):
                ends = f'x1="{x:g}" y1="{y1:g}" x2="{x:g}" y2="{y2:g}"'
                parts.append(f"<line {self.paint('bar', 'stroke')} {ends}/>")
        return parts

    def dots(self, words: Sequence[str], scales: Sequence[float] | None = None) -> list[str]:
        """The dots with their tooltips, and how many times as wide as usual each is."""
        parts = []
        for point, tooltip, scale in zip(
            self.series.drawn, words, scales or [1.0] * len(words), strict=True
        ):
            x, y = self.at(point.x, point.y)
            data = f'data-x="{exact(point.x)}" data-y="{exact(point.y)}"'
            title = f"<title>{escape(tooltip)}</title>"
            parts.append(f"<path {self.dot(x, y, scale)} {data}>{title}</path>")
        return parts

    def dot(self, x: float, y: float, scale: float = 1.0) -> str:
        """The attributes of a dot."""
        size = f" scale({scale:.3g})" if scale != 1 else ""
        shape = _SHAPES[self.index % len(_SHAPES)]
        return f'{self.paint("dot")} transform="translate({x:g} {y:g}){size}" d="{shape}"'


def keys(traces: Sequence[Trace]) -> list[str]:
    """The names of the series at the right, each as near to its line's end as there is room."""
    frame = traces[0].frame
    ends = [trace.end for trace in traces]
    places = spread([y for _, y in ends], 18, frame.top, frame.bottom)
    key = frame.right + 16
    parts = []
    for trace, (x, y), place in zip(traces, ends, places, strict=True):
        if trace.series.drawn and x > frame.right - 70:
            lead = f'x1="{x + 7:g}" y1="{y:g}" x2="{key - 7:g}" y2="{place:g}"'
            parts.append(f"<line {trace.paint('lead', 'stroke')} {lead}/>")
        parts.append(f"<path {trace.dot(key, place)}/>")
        parts.append(key_text(key + 11, place + 4, trace.series.name))
    return parts


def _path(places: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _runs(points: Iterable[Point], kept: Iterable[bool]) -> list[list[Point]]:
    """The points that are kept, split where one is not."""
    pairs = groupby(zip(points, kept, strict=True), key=lambda pair: pair[1])
    return [[point for point, _ in run] for keep, run in pairs if keep]
