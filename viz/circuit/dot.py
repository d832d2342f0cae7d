"""A circuit as Graphviz text, for papers and other tools."""

from collections.abc import Iterator

from ..colour import Scale, fallback, fallback_ink
from ..text import number
from .data import CircuitPicture, EdgeRow, Node, scored
from .key import node_step
from .layout import Layout
from .svg import quoted


def circuit_dot(picture: CircuitPicture) -> str:
    """Writes the circuit, and nothing but the circuit, in the DOT language.

    Args:
        picture: What to write.

    Returns:
        A `digraph`: colour and style show the sign, `penwidth` the magnitude, the tooltip the
        number; layers are ranks. Keys and values lead to each head of their group in the circuit.
    """
    picture = scored(picture)
    layout = Layout(picture)
    links = [(e.source, at, e) for e in picture.edges if e.kept for at in _targets(picture, e)]
    shown = {at for at, node in enumerate(picture.nodes) if node.kept or not node.counts}
    shown.update(at for link in links for at in link[:2])
    lines = [
        "digraph circuit {",
        f"  graph [label={_quote(picture.title)}, labelloc=t, rankdir=BT, fontname=Helvetica];",
        "  node [fontname=Helvetica, style=filled, color=gray50];",
        "  edge [arrowsize=0.6];",
        *(f"  n{at} [{_node(layout, picture.nodes[at])}];" for at in sorted(shown)),
        *_ranks(picture, shown),
        *(f"  n{source} -> n{target} [{_edge(layout, edge)}];" for source, target, edge in links),
    ]
    return "\n".join([*lines, "}"]) + "\n"


def _targets(picture: CircuitPicture, edge: EdgeRow) -> list[int]:
    """The nodes of the circuit that an edge feeds, or its target if there is none."""
    found = [at for at in picture.readers(edge) if picture.nodes[at].kept]
    return found or [edge.target]


def _ranks(picture: CircuitPicture, shown: set[int]) -> Iterator[str]:
    """The nodes that stand side by side; MLPs are half a layer above their heads."""
    ranks: dict[float, list[int]] = {}
    for at in sorted(shown):
        node = picture.nodes[at]
        outer = {"embed": -1.0, "logits": float(picture.layers)}
        depth = outer.get(node.kind, node.layer + 0.5 * (node.kind == "mlp"))
        ranks.setdefault(depth, []).append(at)
    for _, members in sorted(ranks.items()):
        yield f"  {{ rank=same; {' '.join(f'n{at};' for at in members)} }}"


def _node(layout: Layout, node: Node) -> str:
    if not node.counts:
        answer = layout.picture.answer if node.kind == "logits" else ""
        name = f"{node.name} {quoted(answer)}" if answer else node.name
        return f"label={_quote(name)}, shape=box, style=rounded"
    css = Scale(1.0).css_of_step(node_step(layout, node.score))
    shape = "circle" if node.kind == "head" else "box"
    words = _quote(number(node.score, 4, sign=True))
    return (
        f'label={_quote(node.name)}, shape={shape}, fillcolor="{fallback(css)}", '
        f'fontcolor="{fallback_ink(css)}", tooltip={words}'
    )


def _edge(layout: Layout, edge: EdgeRow) -> str:
    colour = fallback("xc-n6" if edge.score < 0 else "xc-p6")
    style = "dashed" if edge.score < 0 else "solid"
    width = 0.6 + 0.5 * layout.edge_level(edge.score)
    words = _quote(f"{edge.reads}: {number(edge.score, 4, sign=True)}")
    return f'color="{colour}", style={style}, penwidth={width:g}, tooltip={words}'


def _quote(text: str) -> str:
    """A DOT string; only quotes and backslashes mean something in it."""
    plain = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
