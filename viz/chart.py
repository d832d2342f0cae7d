"""Charts of measured numbers, each as one SVG: curves, points before and after, reliability.

Series differ in colour and in the shape of their dots, and each is named where its line ends. What
cannot be drawn, NaN and infinities, is left out, and the picture says so.
"""

import math
from collections.abc import Mapping, Sequence

from . import svg
from .axes import Axis, Frame, rule
from .colour import fallback
from .text import escape, number
from .trace import MOST, Point, Series, Trace, keys


__all__ = ["Bin", "Point", "Series", "line_chart", "reliability", "scatter"]


TOOLTIPS = 1000
"""With more points than this a scatter has no tooltips, so that its file stays small."""

Bin = tuple[float, float, float]
"""The mean predicted probability, the observed share, and how many cases both were taken over."""

_CLOUD, _SQUARE = "xc-n6", 360.0


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_ticks: Mapping[float, str] | None = None,
    log_y: bool = False,
    interval: str = "confidence interval",
) -> str:
    """Draws what follows from a dose: a line for each series, with the intervals of its points.

    Args:
        series: One to eight lines.
        title: Heading of the picture.
        x_label: What runs to the right, with its unit.
        y_label: What runs upwards, with its unit.
        x_ticks: Names of positions, such as models. Positions are then taken for categories: the
            series stand side by side and no band is drawn between points.
        log_y: Whether equal distances upwards are equal ratios.
        interval: What the intervals are, such as `95 % bootstrap interval`.

    Returns:
        One `<svg>` element, well-formed XML, which also stands alone as a file. Each dot holds its
        exact numbers in `data-x` and `data-y` and names them on hovering.

    Raises:
        ValueError: No series or more than eight; `x_ticks` empty or not finite; a number to be
            drawn that is beyond 1e300, or not positive with `log_y`.
    """
    _countable(series)
    if x_ticks is not None and not (x_ticks and all(map(math.isfinite, x_ticks))):
        raise ValueError("x_ticks needs at least one position, and finite ones")
    ticks = x_ticks or {}
    drawn = [point for one in series for point in one.drawn]
    bars = [point.interval for point in drawn if point.interval]
    across = [point.x for point in drawn]
    upward = [*(point.y for point in drawn), *(end for ends in bars for end in ends)]
    frame = Frame(
        title,
        x_label,
        y_label,
        Axis.named(ticks, across) if ticks else Axis.linear(across, whole=False, parts=6),
        Axis.logarithmic(upward) if log_y else Axis.linear(upward),
        inset=44.0 if ticks else 16.0,
        names=[one.name for one in series],
    )
    step = min(9.0, 48 / len(series)) if ticks else 0.0
    traces = [
        Trace(frame, one, index, step * (index - (len(series) - 1) / 2))
        for index, one in enumerate(series)
    ]
    parts = [mark for trace in traces for mark in trace.intervals(band=not ticks)]
    parts += [trace.curve() for trace in traces]
    for trace, one in zip(traces, series, strict=True):
        parts += trace.dots([_words(one.name, point, ticks, interval) for point in one.drawn])
    parts += keys(traces)

    notes = []
    if bars:
        notes.append(f"Bars{'' if ticks else ' and bands'}: {interval}.")
    notes += _left_out(sum(len(one.points) for one in series) - len(drawn), "point")
    notes += _left_out(sum(point.low is not None for point in drawn) - len(bars), "interval")
    courses = " ".join(_course(one, ticks) for one in series)
    scale = ", on a logarithmic scale," if log_y else ""
    summary = f"Line chart of {y_label}{scale} against {x_label}. {courses}"
    return frame.document(parts, notes, summary)


def scatter(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    diagonal: bool = True,
    above: str = "",
    below: str = "",
) -> str:
    """Draws points such as prompts, before and after a change.

    Args:
        points: At least one; their intervals are not drawn. Each dot is named by its label on
            hovering, unless there are more than `TOOLTIPS`.
        title: Heading of the picture.
        x_label: What runs to the right, such as a score before.
        y_label: What runs upwards, such as the score after.
        diagonal: Draw the line on which both numbers are equal, on equal scales.
        above: What a point above the diagonal means, such as `worse after`.
        below: What a point below the diagonal means.

    Returns:
        One `<svg>` element, well-formed XML, which also stands alone as a file.

    Raises:
        ValueError: No points; a side of the diagonal is named without one; a number beyond 1e300.
    """
    if not points:
        raise ValueError("a scatter needs at least one point")
    if (above or below) and not diagonal:
        raise ValueError("`above` and `below` name the sides of a diagonal, and there is none")
    drawn = [point for point in points if point.finite]
    x, y = [point.x for point in drawn], [point.y for point in drawn]
    axes = [Axis.linear(x + y if diagonal else found) for found in (x, y)]
    width, height = (_SQUARE, _SQUARE) if diagonal else (540.0, 320.0)
    frame = Frame(title, x_label, y_label, axes[0], axes[1], width, height)

    parts, notes = _cloud(frame, drawn), []
    if diagonal:
        parts += [_diagonal(frame), *_sides(frame, above, below)]
        higher, lower = sum(p.y > p.x for p in drawn), sum(p.y < p.x for p in drawn)
        sides = f"{_side(higher, 'above', above)}, {_side(lower, 'below', below)}"
        notes.append(f"{sides}, {len(drawn) - higher - lower} on it.")
    notes += _left_out(len(points) - len(drawn), "point")
    summary = f"Scatter of {_count(len(drawn), 'point')}: {y_label} against {x_label}."
    return frame.document(parts, notes, summary)


def reliability(bins: Sequence[Bin] | Mapping[str, Sequence[Bin]], *, title: str) -> str:
    """Draws how often what was predicted with some probability came true.

    Args:
        bins: The bins of one scorer, or those of several by name, such as before and after a
            calibration. Bins without cases are left out.
        title: Heading of the picture.

    Returns:
        One `<svg>` element, well-formed XML, which also stands alone as a file. The area of a dot
        is proportional to the cases in its bin, except that no dot is too small to be seen.

    Raises:
        ValueError: No bins, or none with cases under a name; more than eight names; a bin with a
            negative or unknown number of cases, or with a share outside 0 to 1.
    """
    named = bins if isinstance(bins, Mapping) else {"": bins}
    for one in (one for found in named.values() for one in found):
        if not 0 <= one[2] < math.inf or any(share < 0 or share > 1 for share in one[:2]):
            raise ValueError(f"a bin holds two shares of 0 to 1 and a number of cases, got {one}")
    held = {name: [one for one in found if one[2]] for name, found in named.items()}
    series = [Series(name, [Point(x, y) for x, y, _ in found]) for name, found in held.items()]
    _countable(series)
    cases = [[n for x, y, n in found if Point(x, y).finite] for found in held.values()]
    most = max((n for sizes in cases for n in sizes), default=1)

    unit = Axis.linear([0.0, 1.0])
    labels = (title, "predicted probability", "observed share")
    names = [one.name for one in series if one.name]
    frame = Frame(*labels, unit, unit, _SQUARE, _SQUARE, names=names)
    traces = [Trace(frame, one, index) for index, one in enumerate(series)]
    parts = [_diagonal(frame), *_sides(frame, "predicted too low", "predicted too high")]
    parts += [trace.curve() for trace in traces]
    notes = ["Area of a dot: cases in its bin."]
    for trace, sizes in zip(traces, cases, strict=True):
        scales = [max(2 * math.sqrt(n / most), 0.6) for n in sizes]
        parts += trace.dots([_bin_words(trace.series, *one) for one in
                             zip(trace.series.drawn, sizes, strict=True)], scales)  # fmt: skip
        notes.append(_calibration(trace.series, sizes))
    notes += _left_out(sum(len(one.points) - len(one.drawn) for one in series), "bin")
    return frame.document(parts + (keys(traces) if names else []), notes, "Reliability diagram.")


def _diagonal(frame: Frame) -> str:
    """The line of equal numbers."""
    return rule(frame.left, frame.bottom, frame.right, frame.top, "even")


def _sides(frame: Frame, above: str, below: str) -> list[str]:
    """What the two sides of the diagonal mean, in the corners farthest from it."""
    return [
        svg.text(frame.left + 10, frame.top + 20, above, "soft halo"),
        svg.text(frame.right - 10, frame.bottom - 12, below, "soft halo end"),
    ]


def _cloud(frame: Frame, points: Sequence[Point]) -> list[str]:
    """Dots with tooltips, or, if there are many, a few paths of dots that add up to a shade."""
    places = [frame.place(point.x, point.y) for point in points]
    if len(points) > TOOLTIPS:
        layers = ["".join(f"M{x:.1f} {y:.1f}h0" for x, y in places[at::8]) for at in range(8)]
        css = f'class="cloud {_CLOUD}" stroke="{fallback(_CLOUD)}" stroke-width="5"'
        return [f'<path {css} stroke-linecap="round" d="{layer}"/>' for layer in layers]
    dots = []
    for point, (x, y) in zip(points, places, strict=True):
        title = f"<title>{escape(point.label)}</title>" if point.label else ""
        dots.append(f'<circle class="spot {_CLOUD}" cx="{x:g}" cy="{y:g}" r="4">{title}</circle>')
    return [f'<g fill="{fallback(_CLOUD)}">', *dots, "</g>"]


def _countable(series: Sequence[Series]) -> None:
    if not 1 <= len(series) <= MOST:
        raise ValueError(f"a chart holds 1 to {MOST} series, got {len(series)}")


def _words(name: str, point: Point, ticks: Mapping[float, str], interval: str) -> str:
    """The tooltip of a point on a line."""
    lines = [f"{name}, {ticks.get(point.x, number(point.x))}: {number(point.y, 6)}"]
    if point.interval:
        ends = " to ".join(number(end, 6) for end in point.interval)
        lines.append(f"{interval}: {ends}")
    return "\n".join([*lines, point.label] if point.label else lines)


def _course(series: Series, ticks: Mapping[float, str]) -> str:
    """A line in one sentence."""
    drawn = series.drawn
    if not drawn:
        return f"{series.name}: nothing to draw."
    ends = [f"{number(p.y)} at {ticks.get(p.x, number(p.x))}" for p in (drawn[0], drawn[-1])]
    if len(drawn) == 1:
        return f"{series.name}: {ends[0]}."
    return f"{series.name}: {len(drawn)} points, from {ends[0]} to {ends[1]}."


def _bin_words(series: Series, point: Point, cases: float) -> str:
    """The tooltip of a bin."""
    lead = f"{series.name}: " if series.name else ""
    return f"{lead}predicted {number(point.x)}, observed {number(point.y)}, n = {number(cases)}"


def _calibration(series: Series, cases: Sequence[float]) -> str:
    """A reliability curve in one sentence; the distance is the expected calibration error."""
    lead = f"{series.name}: " if series.name else ""
    gaps = [n * abs(point.y - point.x) for point, n in zip(series.drawn, cases, strict=True)]
    mean = number(sum(gaps) / sum(cases), 3) if cases else "unknown"
    amount = f"{_count(len(cases), 'bin')}, {_count(sum(cases), 'case')}"
    return f"{lead}{amount}, mean distance from the diagonal {mean}."


def _side(count: int, side: str, meaning: str) -> str:
    return f"{_count(count, 'point')} {side} the diagonal" + (f" ({meaning})" if meaning else "")


def _count(count: float, noun: str) -> str:
    return f"{number(count)} {noun}" + "s" * (count != 1)


def _left_out(count: int, noun: str) -> list[str]:
    verb = "is not finite and is" if count == 1 else "are not finite and are"
    return [f"{_count(count, noun)} {verb} left out."] if count else []
