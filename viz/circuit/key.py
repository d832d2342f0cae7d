"""What the shapes, marks, colours and lines of a circuit's graph mean, drawn below it."""

import math

from .. import svg
from ..colour import STEPS, Scale, fallback
from ..text import number
from .layout import Layout


_SCALE = Scale(1.0)


def node_step(layout: Layout, score: float) -> int:
    """The colour of a score: as the radius, it goes with the root, so that small ones are seen."""
    share = math.sqrt(abs(score) / layout.node_limit) if layout.node_limit else 0.0
    step = max(round(share * STEPS), 1)
    return 0 if score == 0 else step if score > 0 else -step


def key(layout: Layout, left_out: int) -> list[str]:
    """The key of a graph, in one line where there is room.

    Args:
        layout: Where things stand.
        left_out: How many edges of the circuit a still picture does not draw.
    """
    items = [_head(), _mlp(), _against()]
    if layout.node_limit:
        items.append(_colours(layout.node_limit))
    if layout.picture.edges:
        items += [_edge("pos", "edge for"), _edge("neg", "edge against")]
    parts, left = [], layout.indent - 30
    x, y = left, layout.bottom + 122
    for width, item in items:
        if x > left and x + width > layout.width:
            x, y = left, y + 22
        parts.append(f'<g transform="translate({x:g} {y:g})">{item}</g>')
        x += width + 24
    if left_out:
        words = f"{left_out:,} weaker edges of the circuit are not drawn"
        parts.append(svg.text(left, layout.bottom + 98, words, "tick left-out"))
    return parts


Item = tuple[float, str]
"""Width in pixels, and elements around the line `y = 0`."""


def _head() -> Item:
    disc = f'<circle class="step xc-p4" cx="6" r="6" fill="{fallback("xc-p4")}"/>'
    return 42, disc + svg.text(18, 4, "head", "tick")


def _mlp() -> Item:
    shape = 'y="-6" width="12" height="12" rx="2.5"'
    return 40, f'<rect class="step xc-p4" {shape} fill="{fallback("xc-p4")}"/>' + svg.text(
        18, 4, "MLP", "tick"
    )


def _against() -> Item:
    disc = f'<circle class="step" cx="6" r="6" fill="{fallback("xc-n4")}"/>'
    bar = '<path class="minus" stroke="#08090a" stroke-width="1.5" d="M3 0h6"/>'
    words = svg.text(18, 4, "speaks against", "tick")
    return 92, f'<g class="neg xc-n4">{disc}{bar}</g>{words}'


def _colours(limit: float) -> Item:
    """The colours from the most negative to the most positive; the middle is zero."""
    low, high = number(-limit, 3), number(limit, 3, sign=True)
    start = 6.4 * len(low) + 6
    parts = [svg.text(start - 6, 4, low, "tick end")]
    for at, step in enumerate(_SCALE.steps()):
        css = _SCALE.css_of_step(step)
        place = f'x="{start + 5 * at:g}" y="-6" width="5.3" height="12"'
        parts.append(f'<rect class="step {css}" {place} fill="{fallback(css)}"/>')
    end = start + 5 * len(_SCALE.steps()) + 6
    return end + 6.4 * len(high), "".join([*parts, svg.text(end, 4, high, "tick")])


def _edge(css: str, words: str) -> Item:
    colour = fallback("xc-n6" if css == "neg" else "xc-p6")
    dash = ' stroke-dasharray="5 3"' if css == "neg" else ""
    line = (
        f'<path class="{css}" stroke="{colour}"{dash} stroke-width="2.5" fill="none" d="M0 0h26"/>'
    )
    return 34 + 5.6 * len(words), f'<g class="sample">{line}</g>{svg.text(34, 4, words, "tick")}'
