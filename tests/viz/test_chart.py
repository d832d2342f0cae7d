"""Charts stand where their numbers say: every position is read back through two tick marks."""

import math
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from excise.viz.chart import TOOLTIPS, Point, Series, line_chart, reliability, scatter
from excise.viz.colour import contrast, palette
from excise.viz.text import MINUS
from hypothesis import given, settings
from hypothesis import strategies as st


SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</script></style></svg><img src=x onerror=\"alert('1')\">&amp;]]>\x00\x1b\u202e\ud800"
NAN = math.nan
LABELS: dict[str, Any] = {"title": "t", "x_label": "across", "y_label": "upwards"}
Ruler = Callable[[float], float]


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg)


def with_class(svg: str, name: str) -> list[ET.Element]:
    return [e for e in parse(svg).iter() if name in e.attrib.get("class", "").split()]


def place(dot: ET.Element) -> tuple[float, float]:
    match = re.match(r"translate\((\S+) (\S+)\)", dot.attrib["transform"])
    assert match
    return float(match[1]), float(match[2])


def dots(svg: str) -> list[ET.Element]:
    return [dot for dot in with_class(svg, "dot") if "data-x" in dot.attrib]


def tooltip(element: ET.Element) -> str:
    return element.findtext(f"{SVG}title") or ""


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in parse(svg).iter(f"{SVG}text")]


def label(svg: str) -> str:
    return parse(svg).attrib["aria-label"]


def tick_marks(svg: str, names: Mapping[str, float] | None = None) -> list[list[tuple]]:
    """What is written at the ticks of both axes, and the pixels of their lines."""
    lines = [e for e in parse(svg).iter(f"{SVG}line") if "class" not in e.attrib]
    sides = [
        [float(e.attrib["x1"]) for e in lines if e.attrib["x1"] == e.attrib["x2"]],
        [float(e.attrib["y1"]) for e in lines if e.attrib["y1"] == e.attrib["y2"]],
    ]
    marks: list[list[tuple]] = [[], []]
    for e in with_class(svg, "tick"):
        side = int("end" in e.attrib["class"] and "transform" not in e.attrib)
        near = float(e.attrib["xy"[side]])
        words = e.text or ""
        value = names[words] if names and not side else float(words.replace(MINUS, "-"))
        marks[side].append((value, min(sides[side], key=lambda at: abs(at - near))))
    return marks


def rulers(
    svg: str, *, log_y: bool = False, names: Mapping[str, float] | None = None
) -> tuple[Ruler, Ruler]:
    """From numbers to pixels on each axis, from its outermost two ticks alone."""

    def ruler(marks: list[tuple], scale: Ruler) -> Ruler:
        (one, start), *_, (other, end) = marks
        slope = (end - start) / (scale(other) - scale(one))
        return lambda value: start + slope * (scale(value) - scale(one))

    x, y = tick_marks(svg, names)
    return ruler(x, float), ruler(y, math.log10 if log_y else float)


def near(value: float) -> object:
    return pytest.approx(value, abs=0.03)


CURVE = [Point(d / 20, 0.4 - d / 40, 0.35 - d / 40, 0.5 - d / 50) for d in range(9)]


# the line chart


def test_dots_and_intervals_stand_where_the_ticks_say():
    svg = line_chart([Series("a", CURVE)], **LABELS)
    x, y = rulers(svg)
    assert [place(dot) for dot in dots(svg)] == [(near(x(p.x)), near(y(p.y))) for p in CURVE]
    assert [float(dot.attrib["data-y"]) for dot in dots(svg)] == [p.y for p in CURVE]
    bars = [{k: float(bar.attrib[k]) for k in ("x1", "x2", "y1", "y2")}
            for bar in with_class(svg, "bar")]  # fmt: skip
    assert bars == [
        {"x1": near(x(p.x)), "x2": near(x(p.x)), "y1": near(y(p.low)), "y2": near(y(p.high))}
        for p in CURVE
        if p.low is not None and p.high is not None
    ]
    assert y(1.0) < y(0.0)
    assert x(1.0) > x(0.0)


def test_the_line_passes_through_the_dots_and_the_band_through_the_ends():
    svg = line_chart([Series("a", CURVE)], **LABELS)
    (curve,), (band,) = with_class(svg, "curve"), with_class(svg, "band")
    assert [tuple(map(float, pair.split())) for pair in curve.attrib["d"][1:].split("L")] == [
        place(dot) for dot in dots(svg)
    ]
    corners = [tuple(map(float, pair.split())) for pair in band.attrib["d"][1:-1].split("L")]
    bars = with_class(svg, "bar")
    upper = [(float(bar.attrib["x1"]), float(bar.attrib["y2"])) for bar in bars]
    lower = [(float(bar.attrib["x1"]), float(bar.attrib["y1"])) for bar in bars]
    assert corners == upper + lower[::-1]


def test_a_logarithmic_axis_keeps_ratios():
    points = [Point(i, 17.0 * 3**i, 16.0 * 3**i, 20.0 * 3**i) for i in range(7)]
    svg = line_chart([Series("a", points)], **LABELS, log_y=True)
    x, y = rulers(svg, log_y=True)
    places = [place(dot) for dot in dots(svg)]
    assert places == [(near(x(p.x)), near(y(p.y))) for p in points]
    steps = [after[1] - before[1] for before, after in pairwise(places)]
    assert steps == [near(steps[0])] * 6
    lower = [float(bar.attrib["y1"]) for bar in with_class(svg, "bar")]
    assert lower == [near(y(16.0 * 3**i)) for i in range(7)]
    assert "on a logarithmic scale" in label(svg)


@pytest.mark.parametrize("point", [Point(0, 0.0), Point(0, 1.0, -1.0, 2.0)])
def test_a_logarithmic_axis_refuses_what_is_not_positive(point: Point):
    with pytest.raises(ValueError, match="a logarithmic axis needs numbers above 0, got"):
        line_chart([Series("a", [point])], **LABELS, log_y=True)


def test_categories_have_their_names_and_series_stand_side_by_side():
    long = "meta-llama/Llama-3.2-1B-Instruct-of-a-very-long-name"
    names = {2.0: long, 0.0: "opt-125m", 1.0: "opt-350m"}
    series = [Series(name, [Point(i, 0.5, 0.4, 0.6) for i in range(3)]) for name in "ab"]
    svg = line_chart(series, **LABELS, x_ticks=names)
    short = next(text for text in texts(svg) if text.startswith("meta"))
    assert short.endswith("…")
    assert f"<title>{long}</title>" in svg
    assert "rotate(-35" in svg
    assert not with_class(svg, "band")
    found = [place(dot)[0] for dot in dots(svg)]
    ticks = sorted(at for _, at in tick_marks(svg, {short: 2, "opt-125m": 0, "opt-350m": 1})[0])
    for at, tick in enumerate(ticks):
        assert found[at] + found[at + 3] == near(2 * tick)
        assert 4 < found[at + 3] - found[at] < 20
    assert tooltip(dots(svg)[5]) == f"b, {long}: 0.5\nconfidence interval: 0.4 to 0.6"
    assert f"from 0.5 at opt-125m to 0.5 at {long}" in label(svg)


def test_short_names_stay_upright_and_crowded_ones_are_dropped():
    few = line_chart([Series("a", [Point(0, 1), Point(1, 2)])], **LABELS, x_ticks={0: "x", 1: "y"})
    assert "rotate" not in few
    many = {float(i): f"checkpoint number {i}" for i in range(200)}
    svg = line_chart([Series("a", [Point(i, i) for i in many])], **LABELS, x_ticks=many)
    shown = [e for e in with_class(svg, "tick") if "transform" in e.attrib]
    assert 10 < len(shown) < 40
    assert tooltip(dots(svg)[101]).startswith("a, checkpoint number 101: ")


def test_what_is_not_finite_is_left_out_and_said():
    points = [Point(0, 1), Point(1, NAN), Point(2, 3), Point(3, 4, 3, math.inf), Point(NAN, 2)]
    svg = line_chart([Series("a", points), Series("b", [Point(0, math.inf)])], **LABELS)
    assert len(dots(svg)) == 3
    assert not with_class(svg, "bar")
    assert with_class(svg, "curve")[0].attrib["d"].count("M") == 2, "a gap, not a bridge"
    for words in ("3 points are not finite and are left out.",
                  "1 interval is not finite and is left out."):  # fmt: skip
        assert words in label(svg)
        assert words in texts(svg)
    assert "b: nothing to draw." in label(svg)
    assert not re.search("nan|inf", re.sub("<style>.*</style>|confidence|finite", "", svg), re.I)


def test_a_chart_without_any_number_is_drawn():
    for log_y in (False, True):
        svg = line_chart([Series("a", [Point(NAN, NAN)])], **LABELS, log_y=log_y)
        assert not dots(svg)
        assert "1 point is not finite" in label(svg)


def test_names_stand_at_the_ends_of_their_lines_without_touching():
    series = [Series(f"s{i}", [Point(0, i), Point(1, 5 + i / 100)]) for i in range(8)]
    svg = line_chart(series, **LABELS)
    height = {e.text: float(e.attrib["y"]) for e in parse(svg).iter(f"{SVG}text")}
    found = [height[one.name] for one in series]
    assert found == sorted(found, reverse=True)
    assert all(above - below > 17 for above, below in pairwise(found))
    assert len({(e.attrib["class"], e.attrib["d"]) for e in with_class(svg, "dot")}) == 8


def test_a_line_in_words():
    svg = line_chart([Series("a", CURVE)], **LABELS, interval="95 % interval")
    assert label(svg) == (
        "t. Line chart of upwards against across. a: 9 points, from 0.4 at 0 to 0.2 at 0.4. "
        "Bars and bands: 95 % interval."
    )
    marked = line_chart([Series("a", [Point(0, 0.123456789, label="seed 3")])], **LABELS)
    assert tooltip(dots(marked)[0]) == "a, 0: 0.123457\nseed 3"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: line_chart([], **LABELS), "1 to 8 series, got 0"),
        (lambda: line_chart([Series("a", CURVE)] * 9, **LABELS), "1 to 8 series, got 9"),
        (lambda: Series("a", []), "series 'a' has no points"),
        (lambda: Point(0, 1, low=0), "both ends or none, got 0 and None"),
        (lambda: Point(0, 1, 2, 1), "from 2 to 1 is upside down"),
        (lambda: line_chart([Series("a", CURVE)], **LABELS, x_ticks={}), "x_ticks needs"),
        (lambda: line_chart([Series("a", CURVE)], **LABELS, x_ticks={NAN: "b"}), "x_ticks needs"),
        (lambda: line_chart([Series("a", [Point(0, 1e308)])], **LABELS), "too large to be drawn"),
        (lambda: scatter([], **LABELS), "at least one point"),
        (lambda: scatter(CURVE, **LABELS, diagonal=False, below="b"), "there is none"),
        (lambda: reliability({}, title="t"), "1 to 8 series, got 0"),
        (lambda: reliability([(0.5, 0.5, 0)], title="t"), "has no points"),
        (lambda: reliability([(0.5, 1.5, 3)], title="t"), r"got \(0.5, 1.5, 3\)"),
        (lambda: reliability([(0.5, 0.5, -1)], title="t"), "number of cases"),
        (lambda: reliability([(0.5, 0.5, NAN)], title="t"), "number of cases"),
    ],
    ids=map(str, range(15)),
)
def test_what_makes_no_chart_is_refused_by_name(make: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        make()


# the scatter


def pairs(count: int) -> list[Point]:
    draw = random.Random(0)
    return [Point(draw.random(), draw.random() ** 2, label=f"prompt {i}") for i in range(count)]


def test_a_scatter_has_one_scale_and_a_diagonal_of_equal_numbers():
    points = [*pairs(50), Point(0.5, 0.5, label="level"), Point(0.1, 3.9)]
    svg = scatter(points, **LABELS, above="worse after", below="better after")
    x, y = rulers(svg)
    spots = with_class(svg, "spot")
    assert [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in spots] == [
        (near(x(p.x)), near(y(p.y))) for p in points
    ]
    assert [tooltip(e) for e in spots] == [p.label for p in points]
    assert x(1) - x(0) == near(y(0) - y(1))
    (line,) = with_class(svg, "even")
    low, high = tick_marks(svg)[1][0][0], tick_marks(svg)[1][-1][0]
    ends = [float(line.attrib[key]) for key in ("x1", "y1", "x2", "y2")]
    assert ends == [near(x(low)), near(y(low)), near(x(high)), near(y(high))]
    above, below = sum(p.y > p.x for p in points), sum(p.y < p.x for p in points)
    assert (
        f"{above} points above the diagonal (worse after), "
        f"{below} points below the diagonal (better after), 1 on it."
    ) in label(svg)
    assert {"worse after", "better after"} <= set(texts(svg))


def test_without_a_diagonal_each_axis_has_its_own_scale():
    points = [Point(p.x * 100, p.y, label=p.label) for p in pairs(30)]
    svg = scatter(points, **LABELS, diagonal=False)
    x, y = rulers(svg)
    assert not with_class(svg, "even")
    assert [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in with_class(svg, "spot")] == [
        (near(x(p.x)), near(y(p.y))) for p in points
    ]


def test_many_points_stay_small_and_where_they_are():
    points = [*pairs(5000), Point(0, NAN)]
    svg = scatter(points, **LABELS)
    x, y = rulers(svg)
    assert len(svg) < 100_000
    assert "prompt" not in svg
    found = re.findall(r"M(\S+) (\S+?)h0", "".join(e.attrib["d"] for e in with_class(svg, "cloud")))
    tenths = sorted((float(across), float(up)) for across, up in found)
    wanted = sorted((x(p.x), y(p.y)) for p in points[:-1])
    assert len(tenths) == 5000
    assert all(abs(a[0] - b[0]) < 0.11 for a, b in zip(tenths, wanted, strict=True))
    assert sum(up for _, up in tenths) == pytest.approx(sum(up for _, up in wanted), rel=1e-4)
    assert "1 point is not finite and is left out." in label(svg)
    assert "<circle" in scatter(points[:TOOLTIPS], **LABELS)


# the reliability diagram


def test_bins_stand_at_their_shares_and_areas_follow_their_cases():
    bins = [(0.1, 0.05, 400), (0.5, 0.3, 100), (0.9, 0.7, 1), (NAN, NAN, 0)]
    svg = reliability(bins, title="t")
    x, y = rulers(svg)
    assert [place(dot) for dot in dots(svg)] == [(near(x(p)), near(y(o))) for p, o, _ in bins[:3]]
    moves = [dot.attrib["transform"].partition(") ")[2] for dot in dots(svg)]
    assert moves == ["scale(2)", "", "scale(0.6)"]
    assert tooltip(dots(svg)[1]) == "predicted 0.5, observed 0.3, n = 100"
    error = (400 * 0.05 + 100 * 0.2 + 0.2) / 501
    assert f"3 bins, 501 cases, mean distance from the diagonal {error:.3g}." in label(svg)
    assert "left out" not in label(svg)
    (line,) = with_class(svg, "even")
    assert float(line.attrib["x1"]) == near(x(0))
    assert float(line.attrib["y2"]) == near(y(1))


def test_curves_before_and_after_are_named():
    before, after = [(0.2, 0.1, 5), (0.8, 0.6, 5)], [(0.2, 0.2, 5), (0.8, NAN, 5)]
    svg = reliability({"before": before, "after": after}, title="t")
    assert {"before", "after"} <= set(texts(svg))
    assert len(with_class(svg, "curve")) == 2
    assert "1 bin is not finite and is left out." in label(svg)
    assert "after: 1 bin, 5 cases, mean distance from the diagonal 0." in label(svg)


# all of them


def test_hostile_words_stay_words():
    words: dict[str, Any] = {"title": HOSTILE, "x_label": HOSTILE, "y_label": HOSTILE}
    points = [Point(0, 1, 0, 2, HOSTILE), Point(1, 2, 1, 3, HOSTILE)]
    charts = [
        line_chart([Series(HOSTILE, points)], **words, x_ticks={0: HOSTILE}, interval=HOSTILE),
        scatter(points, **words, above=HOSTILE, below=HOSTILE),
        reliability({HOSTILE: [(0.5, 0.5, 3)]}, title=HOSTILE),
    ]
    for svg in charts:
        known = {"svg", "style", "text", "title", "g", "path", "line", "circle"}
        assert {e.tag.removeprefix(SVG) for e in parse(svg).iter()} <= known
        assert not any(name.startswith("on") for e in parse(svg).iter() for name in e.attrib)
        assert "onerror=" in label(svg)
        assert not re.search("[\x00\x1b\u202e\ud800]|url\\(", svg)


def test_the_same_numbers_give_the_same_picture():
    def make() -> list[str]:
        return [
            line_chart([Series("a", CURVE)], **LABELS),
            scatter(pairs(1500), **LABELS),
            reliability([(0.5, 0.5, 3)], title="t"),
        ]

    assert make() == make()


reals = st.floats(-1e300, 1e300)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(reals, reals), min_size=1, max_size=5))
def test_any_finite_points_lie_inside_the_picture(values: list[tuple[float, float]]):
    svg = line_chart([Series("a", [Point(x, y) for x, y in values])], **LABELS)
    width, height = (float(parse(svg).attrib[key]) for key in ("width", "height"))
    for x, y in map(place, dots(svg)):
        assert 0 < x < width
        assert 0 < y < height
    assert len(dots(svg)) == len(values)


@pytest.mark.parametrize(("scheme", "paper"), [(0, "#fdfcfa"), (1, "#141619")])
def test_every_series_is_seen_on_its_paper(scheme: int, paper: str):
    svg = line_chart([Series(str(i), [Point(0, i)]) for i in range(4)], **LABELS)
    names = {re.findall(r"xc-\w+", dot.attrib["class"])[0] for dot in dots(svg)}
    assert len(names) == 4
    assert all(contrast(palette()[name][scheme][0], paper) >= 3 for name in names)
