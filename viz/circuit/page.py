"""A circuit as one HTML file that a reader can explore, and that still tells it without scripts.

Layers stand upward and heads across; the script (`circuit*.js`) adds the size, filters, search,
paths through a pinned node, attention, tables and exports. Names and tokens come from models: here
they are escaped, and the script only ever makes text of them.
"""

from functools import cache
from importlib.resources import files

from ..page import Section, page
from ..table import table
from ..text import MINUS, escape, number
from .curve import circuit_curve, nearest
from .data import READS, CircuitPicture, Metric, scored
from .dot import circuit_dot
from .layout import Layout
from .pack import packed
from .svg import circuit_svg


__all__ = ["circuit_dot", "circuit_page", "circuit_svg"]

STILL_ROWS = 25
"""Rows of each table that readers without scripts see, the strongest."""

_SCRIPTS = (
    "model.js", "haze.js", "graph.js", "hit.js",
    "panel.js", "table.js", "export.js", "circuit.js",
)  # fmt: skip


def circuit_page(picture: CircuitPicture) -> str:
    """Writes the page of a circuit.

    Args:
        picture: What to show.

    Returns:
        A complete HTML document, which loads nothing; `write_page` saves it.
    """
    sums = scored(picture) is not picture
    picture = scored(picture)
    sections = [
        Section("Circuit", _app(picture)),
        Section("Components and edges" if picture.edges else "Components", _tables(picture)),
        Section("How to read this", _help(picture, sums)),
    ]
    return page(
        picture.title,
        sections,
        subtitle=picture.subtitle,
        footer=picture.footer,
        style=_read("circuit.css"),
        script=script(),
    )


@cache
def script() -> str:
    """The page's script: its files one after the other, in strict mode and out of global scope."""
    parts = "\n".join(_read(name) for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n\n{parts}}})();'


@cache
def _read(name: str) -> str:
    return (
        files(__name__.rpartition(".")[0])
        .joinpath(name)
        .read_text(encoding="utf-8")
        .replace("\r\n", "\n")
    )


def _app(picture: CircuitPicture) -> str:
    warnings = "\n".join(f"<p>{escape(words)}</p>" for words in picture.warnings)
    notice = f'<div class="xk-warn" role="note">{warnings}</div>\n' if warnings else ""
    metrics = "\n".join(map(_metric, picture.metrics))
    numbers = f'<dl class="xk-metrics">\n{metrics}\n</dl>\n' if metrics else ""
    width = Layout(picture).width
    return f"""<div class="xk-app" id="circuit-app">
{notice}{numbers}{_controls(picture)}
<div class="xk-split">
<div class="xk-scroll"><div class="xk-stage" id="circuit-stage" style="--natural:{width}px">
<canvas id="circuit-canvas" aria-hidden="true" hidden></canvas>
{circuit_svg(picture)}
</div></div>
<aside class="xk-side" aria-label="Details">
{circuit_curve(picture)}
<div id="circuit-detail"></div>
</aside>
</div>
<div class="xk-card" id="circuit-card" aria-hidden="true" hidden></div>
</div>
<script type="application/json" id="circuit-data">{packed(picture)}</script>"""


def _metric(metric: Metric) -> str:
    ends = ""
    if metric.low is not None and metric.high is not None:
        ends = f"<dd>{number(metric.low, 3)} to {number(metric.high, 3)}</dd>"
    note = f"<dd>{escape(metric.note)}</dd>" if metric.note else ""
    value = number(metric.value, 3)
    return f'<div><dt>{escape(metric.name)}</dt><dd class="big">{value}</dd>{ends}{note}</div>'


def _controls(picture: CircuitPicture) -> str:
    """The controls; they appear once the script runs."""
    kinds = _chips("Show", {"head": "heads", "mlp": "MLPs"})
    edges = ""
    if picture.edges:
        used = {edge.reads for edge in picture.edges}
        reads = {"mlp": "into MLPs", "logits": "into logits"}
        ports = {name: reads.get(name, name) for name in READS if name in used}
        # The kind of a node is hidden with its edges; an edge's port needs a name of its own.
        edges = _chips("Edges", {f"to-{name}": words for name, words in ports.items()})
        edges += _chips("", {"positive": "+ for", "negative": f"{MINUS} against"})
    exports = "".join(
        f'<button type="button" data-export="{kind.lower()}">{kind}</button>'
        for kind in ("SVG", "PNG", "JSON")
    )
    return f"""<form class="xk-controls" id="circuit-controls" data-live hidden>
<div class="xk-size"><label for="circuit-size">Size</label>
<input type="range" id="circuit-size" min="0" max="1" step="1">
<button type="button" id="circuit-reset" title="Back to {picture.size:,}" disabled>↺</button>
<output id="circuit-count" for="circuit-size">{picture.size}</output>
<output id="circuit-faith" for="circuit-size">{_faithfulness(picture)}</output></div>
<div class="xk-find"><input type="search" id="circuit-query" aria-label="Find components"
placeholder="Find a3, a3.h5, m7" autocomplete="off" spellcheck="false">
<span class="xk-soft" id="circuit-found" aria-live="polite"></span></div>
{kinds}{edges}
<div class="xk-take"><span>Save</span>{exports}</div>
</form>"""


def _chips(legend: str, boxes: dict[str, str]) -> str:
    items = "".join(
        f'<label><input type="checkbox" data-show="{name}" checked><span>{words}</span></label>'
        for name, words in boxes.items()
    )
    title = f"<legend>{legend}</legend>" if legend else ""
    return f'<fieldset class="xk-chips">{title}{items}</fieldset>\n'


def _faithfulness(picture: CircuitPicture) -> str:
    point = nearest(picture, picture.size)
    return f"faithfulness {number(point.faithfulness, 2)}" if point else ""


def _tables(picture: CircuitPicture) -> str:
    """Still tables of the strongest, and the box the script fills with all."""
    tabs = '<button type="button" data-table="nodes" aria-pressed="true">Components</button>'
    if picture.edges:
        tabs += '<button type="button" data-table="edges" aria-pressed="false">Edges</button>'
    return f"""<div class="xk-tabs" id="circuit-tables" data-live hidden>{tabs}
<p id="circuit-caption" aria-live="polite"></p></div>
<div class="xk-rows" id="circuit-rows" tabindex="0" role="region" aria-label="Table" data-live
hidden></div>
<div class="xk-still" data-still>
{_still_tables(picture)}
</div>"""


def _still_tables(picture: CircuitPicture) -> str:
    kept = [node for node in picture.nodes if node.counts and node.kept]
    kept.sort(key=lambda node: -abs(node.score))
    rows = [[n.name, n.score, _ends(n.low, n.high)] for n in kept[:STILL_ROWS]]
    shown = f"The {len(rows)} strongest of {len(kept)} components"
    parts = [table(["component", "score", "interval"], rows, caption=shown)]
    edges = sorted((edge for edge in picture.edges if edge.kept), key=lambda e: -abs(e.score))
    if edges:
        lines = [
            [picture.nodes[e.source].name, picture.end_of(e), e.score, _ends(e.low, e.high)]
            for e in edges[:STILL_ROWS]
        ]
        shown = f"The {len(lines)} strongest of {len(edges):,} edges"
        parts.append(table(["from", "to", "score", "interval"], lines, caption=shown))
    return "\n".join(parts)


def _ends(low: float | None, high: float | None) -> str | None:
    if low is None or high is None:
        return None
    return f"{number(low, 3, sign=True)} to {number(high, 3, sign=True)}"


def _help(picture: CircuitPicture, sums: bool) -> str:
    """How to read the page; `sums` says that nodes have no scores of their own."""
    order = "score" if picture.signed_order else "magnitude of score"
    what = "edges" if picture.level == "edges" else "heads and MLPs"
    paragraphs = [
        "A disc is an attention head, a square an MLP; layers stand upward. Area and colour follow "
        "the score: orange speaks for the answer, blue with a bar against it. A faint dot is a "
        "component outside the circuit."
        + (" The score of a component is the sum over the edges it writes." if sums else ""),
        f"The size slider keeps the first {what} by {order}; at {picture.size:,} it is the circuit "
        "as it was found. Faithfulness is 1 where the circuit alone does what the whole model does "
        "and 0 where it does no better than nothing.",
        "Click a component to pin it: only paths through it stay, and the panel shows what it "
        "reads, what it writes to, and where a head looks. Click again or press <kbd>Esc</kbd> to "
        "let go.",
        "By keyboard: <kbd>Tab</kbd> into the graph, arrow keys from node to node, "
        "<kbd>Enter</kbd> to pin.",
    ]
    if picture.edges:
        paragraphs.insert(
            1,
            "An edge leads from what one component writes to what another reads; its width follows "
            "its magnitude, and a negative one is blue and dashed. Into a head, queries (q) enter "
            "at the left, keys (k) in the middle and values (v) at the right"
            + (
                "; heads that share keys and values stand together, and a line below them takes "
                "these edges." if picture.kv_groups < picture.heads else "."
            ),
        )  # fmt: skip
    items = "\n".join(f"<p>{words}</p>" for words in paragraphs)
    return f'<div class="xk-help">\n{items}\n</div>'
