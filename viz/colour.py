"""Colour scales that a colour-blind reader, a dark screen and a printer can follow.

A signed value runs from blue (negative) over a neutral to orange (positive) on a symmetric range;
a value that is never negative runs from a neutral to teal. Lightness changes steadily along each
arm, so that the order survives in grey. Colours are few, fixed steps, written once as CSS custom
properties; an element picks one by its class and receives `--fill` and a readable `--ink`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache


STEPS = 8
"""Steps on each arm, the neutral one not counted."""

_LIGHT = {
    "n": ("#f0eeea", "#b4d0ea", "#5b9bd1", "#1f62a5", "#0c3566"),
    "p": ("#f0eeea", "#fbd3a4", "#f19a3e", "#c1600a", "#6e3000"),
    "s": ("#f0eeea", "#b5dcd3", "#57afa3", "#17776f", "#06413f"),
}
_DARK = {
    "n": ("#25282d", "#203f5e", "#2866a3", "#4797dd", "#93ccff"),
    "p": ("#25282d", "#51371d", "#955614", "#de8722", "#ffc070"),
    "s": ("#25282d", "#1d4644", "#1b756e", "#37ab9e", "#84e3d3"),
}
_INKS = ("#08090a", "#ffffff")


@dataclass(frozen=True)
class Scale:
    """From a value to one of the steps.

    Attributes:
        limit: The magnitude that receives the strongest colour; 0 when there is nothing to show.
        signed: Whether values can be negative; then the range is `-limit ... limit`.
    """

    limit: float
    signed: bool = True

    def __post_init__(self):
        if not (math.isfinite(self.limit) and self.limit >= 0):
            raise ValueError(f"a scale needs a finite limit of at least 0, got {self.limit!r}")

    @classmethod
    def fit(cls, values: Iterable[float], *, signed: bool | None = None) -> "Scale":
        """The tightest scale for the finite ones among the values.

        Args:
            values: Numbers; NaN and infinities do not widen the scale.
            signed: `None` takes the signed scale if any value is negative.
        """
        finite = [value for value in values if math.isfinite(value)]
        if signed is None:
            signed = any(value < 0 for value in finite)
        return cls(max((abs(value) for value in finite), default=0.0), signed)

    def step(self, value: float) -> int:
        """The step, `-STEPS ... STEPS` on a signed scale and `0 ... STEPS` otherwise."""
        if math.isinf(value):
            share = math.copysign(1.0, value)
        else:
            share = value / self.limit if self.limit else 0.0
        lowest = -1.0 if self.signed else 0.0
        return round(min(max(share, lowest), 1.0) * STEPS)

    def holds(self, value: float) -> bool:
        """Whether the value lies on the scale; NaN lies nowhere and counts as held."""
        return math.isnan(value) or (-self.limit if self.signed else 0) <= value <= self.limit

    def css(self, value: float) -> str:
        """The class name of the value's colour; `xc-nan` for NaN."""
        return "xc-nan" if math.isnan(value) else self.css_of_step(self.step(value))

    def css_of_step(self, step: int) -> str:
        """The class name of one step."""
        if not self.signed:
            return f"xc-s{step}"
        return "xc-z" if step == 0 else f"xc-{'n' if step < 0 else 'p'}{abs(step)}"

    def steps(self) -> range:
        """All steps, lowest first: what a legend draws."""
        return range(-STEPS if self.signed else 0, STEPS + 1)


def fallback(css: str) -> str:
    """The light colour of a class, for programs that know SVG but not CSS variables."""
    return palette()[css][0][0]


def fallback_ink(css: str) -> str:
    """The text colour on `fallback(css)`."""
    return palette()[css][0][1]


@cache
def palette() -> dict[str, tuple[tuple[str, str], tuple[str, str]]]:
    """Class name -> ((light fill, its ink), (dark fill, its ink))."""
    colours: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {}
    for arm in ("n", "p", "s"):
        pairs = zip(ramp(_LIGHT[arm], STEPS + 1), ramp(_DARK[arm], STEPS + 1), strict=True)
        for step, (light, dark) in enumerate(pairs):
            name = "xc-z" if step == 0 and arm != "s" else f"xc-{arm}{step}"
            colours[name] = ((light, ink(light)), (dark, ink(dark)))
    colours["xc-nan"] = (("#ffffff", "#6b7077"), ("#17191c", "#8d939b"))
    return colours


@cache
def stylesheet() -> str:
    """The palette as CSS: custom properties for both schemes and one class for each step.

    Dark colours apply to dark screens only, so that a page is always printed in the light ones.
    """
    light = ";".join(_properties(css, pair[0]) for css, pair in palette().items())
    dark = ";".join(_properties(css, pair[1]) for css, pair in palette().items())
    classes = "".join(f".{css}{{--fill:var(--{css});--ink:var(--{css}-i)}}" for css in palette())
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
    )


def ink(fill: str) -> str:
    """The text colour, near-black or white, that reads better on `fill`."""
    return max(_INKS, key=lambda colour: contrast(colour, fill))


def contrast(one: str, other: str) -> float:
    """The WCAG contrast ratio of two `#rrggbb` colours, 1 to 21."""
    bright, faint = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (faint + 0.05)


def ramp(anchors: tuple[str, ...], count: int) -> list[str]:
    """`count` colours from the first anchor to the last, evenly spaced between them in OKLab."""
    points = [_oklab(colour) for colour in anchors]
    colours = []
    for index in range(count):
        place = index * (len(points) - 1) / max(count - 1, 1)
        left = min(int(place), len(points) - 2)
        share = place - left
        pair = zip(points[left], points[left + 1], strict=True)
        colours.append(_hex([a + (b - a) * share for a, b in pair]))
    return colours


def _properties(css: str, pair: tuple[str, str]) -> str:
    return f"--{css}:{pair[0]};--{css}-i:{pair[1]}"


def _linear(colour: str) -> list[float]:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def _luminance(colour: str) -> float:
    red, green, blue = _linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _oklab(colour: str) -> list[float]:
    """OKLab (B. Ottosson, 2020), a space in which equal distances look equal."""
    r, g, b = _linear(colour)
    l = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)  # noqa: E741
    m = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    s = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return [
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    ]


def _hex(lab: list[float]) -> str:
    l = (lab[0] + 0.3963377774 * lab[1] + 0.2158037573 * lab[2]) ** 3  # noqa: E741
    m = (lab[0] - 0.1055613458 * lab[1] - 0.0638541728 * lab[2]) ** 3
    s = (lab[0] - 0.0894841775 * lab[1] - 1.2914855480 * lab[2]) ** 3
    linear = (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )
    clipped = [min(max(c, 0.0), 1.0) for c in linear]
    encoded = [12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in clipped]
    return "#" + "".join(f"{round(255 * c):02x}" for c in encoded)
