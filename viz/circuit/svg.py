"""A circuit as one still SVG: what readers without scripts, notebooks and files show."""

from collections.abc import Sequence

from .. import svg
from ..colour import Scale, fallback, fallback_ink
from ..text import escape, number, shorten
from .data import CircuitPicture, EdgeRow, Node, scored
from .key import key, node_step
from .layout import Layout


MOST_EDGES = 2000
"""How many edges a still picture draws, the strongest."""

STYLE = (
    ".xk .faint{stroke:var(--xh-line);stroke-linecap:round;fill:none}"
    ".xk .stripe{fill:var(--xh-ink);fill-opacity:.028}"
    ".xk path.pos{stroke:var(--xc-p6);fill:none}"
    ".xk path.neg{stroke:var(--xc-n6);stroke-dasharray:5 3;fill:none}"
    ".xk .rules{stroke:var(--xh-soft);stroke-opacity:.6;stroke-linecap:round;fill:none}"
    ".xk .moat{stroke:none;fill:var(--xh-paper)}"
    ".xk .body{fill:var(--fill);stroke-width:1.1}"
    ".xk .pos .body{stroke:var(--xc-p6)}.xk .neg .body{stroke:var(--xc-n6)}"
    ".xk .zero .body{stroke:var(--xh-soft)}"
    ".xk .minus{stroke:var(--ink);stroke-linecap:round;fill:none}"
    ".xk .bar .body{fill:var(--xh-paper);stroke:var(--xh-soft);stroke-width:1.2}"
    ".xk .bar text{font-size:13px}.xk .bar .answer{font-size:15px;font-weight:600}"
    ".xk .label{font-size:10.5px;fill:var(--xh-ink);stroke:var(--xh-paper);stroke-width:3;"
    "stroke-linejoin:round;paint-order:stroke;pointer-events:none}"
    ".xk .step{fill:var(--fill)}"
)
"""What the graph adds to the style of an SVG."""


def circuit_svg(picture: CircuitPicture) -> str:
    """Draws the circuit as it was found.

    Args:
        picture: What to show.

    Returns:
        One `<svg>` element, well-formed XML, which also stands alone as a file. Of more than
        `MOST_EDGES` edges the strongest are drawn, and the picture says so.
    """
    picture = scored(picture)
    layout = Layout(picture)
    kept = sorted((edge for edge in picture.edges if edge.kept), key=lambda edge: abs(edge.score))
    drawn = kept[-MOST_EDGES:]
    parts = [
        f'<style>{STYLE}</style>\n<g class="xk">',
        *_ground(layout),
        '<g class="edges">', *_edges(layout, drawn), "</g>",
        '<g class="rules-box">', *_rules(layout, drawn), "</g>",
        '<g class="nodes">', *_nodes(layout), "</g>",
        *key(layout, len(kept) - len(drawn)),
        "</g>",
    ]  # fmt: skip
    return svg.document(layout.width, layout.height, summary(picture), parts)


def summary(picture: CircuitPicture) -> str:
    """The circuit in words, for readers who do not see it."""
    kept = sorted((n for n in picture.nodes if n.counts and n.kept), key=lambda n: -abs(n.score))
    strongest = ", ".join(f"{n.name} ({number(n.score, 3, sign=True)})" for n in kept[:8])
    edges = sum(edge.kept for edge in picture.edges)
    links = f" and {edges} edges" if edges else ""
    words = f"Circuit of {len(kept)} heads and MLPs{links} in {picture.layers} layers."
    return f"{picture.title}. {words}" + (f" Strongest: {strongest}." if strongest else "")


def quoted(token: str) -> str:
    """A token in quotes, with its line ends and tabs visible."""
    visible = token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    return f"“{shorten(visible, 28)}”"


def _ground(layout: Layout) -> list[str]:
    """What never changes: stripes of KV groups, a dot for each component, numbers of the axes."""
    picture = layout.picture
    parts = [*_stripes(layout)]
    places = [layout.place(node) for node in picture.nodes if node.counts]
    dots = "".join(f"M{x:g} {y:g}h0" for x, y in places)
    size = max(min(layout.wide, layout.tall) * 0.12, 1.6)
    parts.append(
        f'<path class="faint" stroke="#d5d3ce" stroke-width="{size:.3g}" '
        f'stroke-linecap="round" d="{dots}"/>'
    )
    for layer in range(0, picture.layers, svg.spacing(layout.tall, 17)):
        y = layout.rows[layer] + 4
        parts.append(svg.text(layout.columns[0] - layout.wide / 2 - 8, y, str(layer), "tick end"))
    for head in range(0, picture.heads, svg.spacing(layout.wide, 20)):
        parts.append(svg.text(layout.columns[head], layout.bottom + 20, str(head), "tick mid"))
    parts.append(svg.text(layout.mlp, layout.bottom + 20, "MLP", "tick mid"))
    parts.append(svg.text(layout.columns[0] - layout.wide / 2 - 8, layout.bottom + 20, "head",
                          "tick end"))  # fmt: skip
    parts.append(svg.text(layout.columns[0] - layout.wide / 2 - 8, layout.top - 8, "layer",
                          "tick end"))  # fmt: skip
    return parts


def _stripes(layout: Layout) -> list[str]:
    """A faint column behind the heads of every KV group."""
    picture = layout.picture
    if not 1 < picture.kv_groups < picture.heads:
        return []
    size = picture.heads // picture.kv_groups
    parts = []
    for first in range(0, picture.heads, size):
        x = layout.columns[first] - layout.wide * 0.52
        width = layout.columns[first + size - 1] + layout.wide * 0.52 - x
        parts.append(
            f'<rect class="stripe" x="{x:.1f}" y="{layout.top - 4:g}" width="{width:.1f}" '
            f'height="{layout.bottom - layout.top + 8:g}" rx="8" fill-opacity="0.028"/>'
        )
    return parts


def edge_look(level: int) -> tuple[float, float]:
    """Width and opacity of edges of a level."""
    width = 0.7 + 0.3 * level if level < 2 else 0.4 + 0.6 * level  # up to 1 is fast to draw
    return round(width, 2), round(0.15 + 0.105 * level, 3)


def _edges(layout: Layout, edges: Sequence[EdgeRow]) -> list[str]:
    """The edges, one path for all that look the same; the strongest on top."""
    looks: dict[tuple[int, bool], list[str]] = {}
    for edge in edges:
        (x0, y0), (ax, ay), (bx, by), (x1, y1) = layout.curve(edge)
        path = f"M{x0:.1f} {y0:.1f}C{ax:.1f} {ay:.1f} {bx:.1f} {by:.1f} {x1:.1f} {y1:.1f}"
        looks.setdefault((layout.edge_level(edge.score), edge.score < 0), []).append(path)
    parts = []
    for (level, negative), paths in sorted(looks.items()):
        width, opacity = edge_look(level)
        css = fallback("xc-n6" if negative else "xc-p6")
        dash = ' stroke-dasharray="5 3"' if negative else ""
        parts.append(
            f'<path class="{"neg" if negative else "pos"}" stroke="{css}"{dash} fill="none" '
            f'stroke-width="{width}" stroke-opacity="{opacity}" d="{"".join(paths)}"/>'
        )
    return parts


def _rules(layout: Layout, edges: list[EdgeRow]) -> list[str]:
    path = "".join(f"M{x0:g} {y:g}H{x1:g}" for x0, x1, y in layout.group_rules(edges))
    return [f'<path class="rules" stroke="#666c75" d="{path}"/>'] if path else []


def _nodes(layout: Layout) -> list[str]:
    """The embedding, the logits, and the components of the circuit, the strongest on top."""
    picture = layout.picture
    parts = [_bar(layout, node) for node in picture.nodes if not node.counts]
    kept = sorted((n for n in picture.nodes if n.counts and n.kept), key=lambda n: abs(n.score))
    named = {id(node) for node in kept[-layout.labels :]}
    return parts + [_node(layout, node, id(node) in named) for node in kept]


def _bar(layout: Layout, node: Node) -> str:
    bar = layout.bars[node.kind]
    shape = f'x="{-bar.half:g}" y="-15" width="{2 * bar.half:g}" height="30" rx="15"'
    answer = layout.picture.answer if node.kind == "logits" else ""
    words = svg.text(0, 5, quoted(answer), "answer mid") if answer else (
        svg.text(0, 4.5, "embedding" if node.kind == "embed" else "logits", "mid")
    )  # fmt: skip
    if answer:
        words += svg.text(0, -21, "logits", "tick mid")
    title = f"<title>{escape(tooltip(node))}</title>"
    moat = f'<rect class="moat" {shape} fill="#fdfcfa"/>'
    return (
        f'<g class="bar" transform="translate({bar.x:g} {bar.y:g})">{moat}'
        f'<rect class="body" {shape} fill="#fdfcfa" stroke="#666c75"/>{words}{title}</g>'
    )


def _node(layout: Layout, node: Node, named: bool) -> str:
    x, y = layout.place(node)
    r = round(layout.radius(node.score), 2)
    css = Scale(1.0).css_of_step(node_step(layout, node.score))
    sign = "pos" if node.score > 0 else "neg" if node.score < 0 else "zero"
    edge = fallback({"pos": "xc-p6", "neg": "xc-n6", "zero": "xc-z"}[sign])
    paint = f'class="body" fill="{fallback(css)}" stroke="{edge}"'
    parts = [shape(node, r + 2, 'class="moat" fill="#fdfcfa"'), shape(node, r, paint)]
    if node.score < 0:
        reach = round(r * 0.5, 2)
        parts.append(
            f'<path class="minus" stroke="{fallback_ink(css)}" stroke-width="{max(r / 5, 1):.3g}" '
            f'd="M{-reach:g} 0h{2 * reach:g}"/>'
        )
    if named:
        place = (0, r + 11, "label mid") if layout.label_below else (r + 3.5, 3.6, "label")
        parts.append(svg.text(place[0], place[1], shorten(node.name, 12), place[2]))
    parts.append(f"<title>{escape(tooltip(node))}</title>")
    inside = "".join(parts)
    return f'<g class="node {sign} {css}" transform="translate({x:g} {y:g})">{inside}</g>'


def shape(node: Node, r: float, paint: str) -> str:
    """A disc for a head, a square of about its area for an MLP."""
    if node.kind == "head":
        return f'<circle r="{r:g}" {paint}/>'
    half = round(r * 0.9, 2)
    place = f'x="{-half:g}" y="{-half:g}" width="{2 * half:g}" height="{2 * half:g}" rx="2.5"'
    return f"<rect {place} {paint}/>"


def tooltip(node: Node) -> str:
    """A node in words."""
    words = f"{node.name}: {number(node.score, 4, sign=True)}"
    if node.low is None or node.high is None:
        return words
    ends = " to ".join(number(end, 4, sign=True) for end in (node.low, node.high))
    return f"{words} ({ends})"
