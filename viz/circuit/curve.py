"""Faithfulness by the size of the circuit, with the size on show marked."""

import math

from .. import svg
from ..axes import Axis, Frame, rule
from ..text import exact, number
from ..trace import Point, Series, Trace, keys
from .data import CircuitPicture, CurvePoint


_WIDE, _TALL = 226.0, 150.0
_LOOKS = (2, 6)  # of a trace: full and dashed teal, which is no colour of a sign


def circuit_curve(picture: CircuitPicture) -> str:
    """Draws the curve of a picture on a logarithmic axis of sizes.

    Args:
        picture: What to show.

    Returns:
        One `<svg>` element, or nothing for a picture without a curve. Its `<g class="now">` marks
        the size of the picture and says, in data attributes, where other sizes stand, so that a
        script can move it.
    """
    points = sorted(picture.curve, key=lambda point: point.size)
    if not points:
        return ""
    circuit = [_point(point) for point in points]
    control = [Point(point.size, point.random) for point in points if point.random is not None]
    series = [Series("circuit", circuit)] + ([Series("random", control)] if control else [])
    upward = [end for p in circuit if p.finite for end in (p.y, *(p.interval or ()))]
    upward += [point.y for point in control if point.finite]
    frame = Frame(
        "Faithfulness by size",
        f"{picture.level} kept",
        "share of the model's behaviour that is left",
        _sizes([points[0].size, max(points[-1].size, picture.size)]),
        Axis.linear([0.0, 1.0, *upward]),
        _WIDE,
        _TALL,
        names=[one.name for one in series],
    )
    traces = [Trace(frame, *pair) for pair in zip(series, _LOOKS, strict=False)]
    parts = [*_whole(frame), *_now(frame, picture.size), *traces[0].intervals(band=True)]
    parts += [trace.curve() for trace in reversed(traces)]
    for trace in reversed(traces):
        words = [_words(trace.series.name, point) for point in trace.series.drawn]
        parts += trace.dots(words, [0.8] * len(words))
    return frame.document(
        [*parts, *keys(traces)], [], "Line chart of faithfulness against the size of the circuit."
    )


def nearest(picture: CircuitPicture, size: int) -> CurvePoint | None:
    """The measured point whose size is nearest, by ratio; `None` without a curve."""
    return min(
        picture.curve, key=lambda point: abs(math.log(point.size / max(size, 1))), default=None
    )


def _sizes(values: list[float]) -> Axis:
    """A logarithmic axis with few ticks: over more than a decade and a half, powers of ten."""
    axis = Axis.logarithmic(values)
    ticks = axis.ticks
    if axis.high > 30 * axis.low:
        ticks = [tick for tick in ticks if math.log10(tick[0]) % 1 == 0]
    return Axis(axis.low, axis.high, [(mark, f"{mark:,.0f}") for mark, _ in ticks], log=True)


def _point(point: CurvePoint) -> Point:
    """A point; an interval that is no interval, as of an undefined ratio, is left out."""
    if point.low is not None and point.high is not None and point.low <= point.high:
        return Point(point.size, point.faithfulness, point.low, point.high)
    return Point(point.size, point.faithfulness)


def _whole(frame: Frame) -> list[str]:
    """The line of the whole model."""
    _, y = frame.place(10 ** math.log10(frame.x.low), 1.0)
    return [rule(frame.left, y, frame.right, y, "even")]


def _now(frame: Frame, size: int) -> list[str]:
    """The mark of the size on show: a line that a script can move along the axis."""
    share = min(max(frame.x.share(max(size, 1)), 0.0), 1.0)
    data = {"left": frame.left, "width": frame.width, "low": frame.x.low, "high": frame.x.high}
    attributes = " ".join(f'data-{name}="{exact(value)}"' for name, value in data.items())
    x, late = frame.left + share * frame.width, share > 0.7
    return [
        f'<g class="now" {attributes} transform="translate({x:.1f} 0)">'
        f'<path class="mark" stroke="#1d2024" stroke-width="1.5" '
        f'd="M0 {frame.top - 5:g}V{frame.bottom:g}"/>'
        + svg.text(-5 if late else 5, frame.top + 9, f"{size:,}", "halo end" if late else "halo")
        + "</g>"
    ]


def _words(name: str, point: Point) -> str:
    """The tooltip of a point."""
    words = f"{name}, {number(point.x)} kept: {number(point.y, 3)}"
    if point.interval is None:
        return words
    return f"{words} ({' to '.join(number(end, 3) for end in point.interval)})"
