"""The circuit page as text: well-formed, complete, small, and nothing in it can come alive."""

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.viz.circuit.curve import circuit_curve, nearest
from excise.viz.circuit.data import CircuitPicture, CurvePoint, EdgeRow, Example, Metric, Node
from excise.viz.circuit.layout import Layout
from excise.viz.circuit.pack import numbers, packed
from excise.viz.circuit.page import circuit_dot, circuit_page, circuit_svg, script
from excise.viz.page import POLICY, Section, page
from hypothesis import given
from hypothesis import strategies as st


Make = Callable[..., CircuitPicture]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = (
    "</script></style></svg><!--<script><img src=x onerror=\"alert('1')\">&amp;]]>\x00\u202e\ud800"
)
FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30)


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def decoded(column: dict[str, Any]) -> list[float]:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    powers = [column["top"] - letters.index(letter) for letter in column["powers"]]
    return [float(f"{d}e{p}") for d, p in zip(column["digits"], powers, strict=True)]


def sums(steps: list[int]) -> list[int]:
    return [sum(steps[: at + 1]) for at in range(len(steps))]


def by_class(svg: str, name: str) -> list[ET.Element]:
    return [e for e in ET.fromstring(svg).iter() if name in e.get("class", "").split()]


def hostile(picture: CircuitPicture) -> CircuitPicture:
    """The picture with every text in it replaced."""
    names = {node.name: f"{HOSTILE}{at}" for at, node in enumerate(picture.nodes)}
    examples = [
        Example([HOSTILE] * len(one.tokens), {names[n]: rows for n, rows in one.attention.items()})
        for one in picture.examples
    ]
    return replace(
        picture, title=HOSTILE, subtitle=HOSTILE, footer=HOSTILE, answer=HOSTILE,
        warnings=[HOSTILE], metrics=[Metric(HOSTILE, 1.0, 0.5, math.inf, HOSTILE)],
        nodes=[replace(node, name=names[node.name]) for node in picture.nodes], examples=examples,
    )  # fmt: skip


# the page


def test_the_policy_allows_this_script_and_no_other(make_picture: Make):
    html = circuit_page(make_picture())
    elements = Elements(html)
    scripts = elements.named("script")
    assert [one.get("type") for one in scripts] == ["application/json", None]
    policy = str(elements.named("meta")[1]["content"])
    text = html[html.rindex("<script>") + 8 : html.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert text == script()
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]
    assert "default-src 'none'" in policy
    assert "img-src data: blob:" in policy


def test_a_page_without_a_script_keeps_its_policy():
    assert f'content="{POLICY}"' in page("t", [Section("a", "")], style="p{}")
    assert "<script" not in page("t", [Section("a", "")])


@pytest.mark.parametrize("script", ["'</SCRIPT>'", "'<!--'", "a\r\nb"])
def test_a_script_that_would_end_its_element_is_refused(script: str):
    with pytest.raises(ValueError, match="end tag"):
        page("t", [], script=script)


def test_hostile_texts_stay_texts(make_picture: Make):
    picture = hostile(make_picture())
    html = circuit_page(picture)
    elements = Elements(html)
    assert not {tag for tag, _ in elements.tags} & {"img", "iframe", "object"}
    assert len(elements.named("script")) == 2
    assert not any(name.startswith("on") for _, found in elements.tags for name in found)
    assert not re.search("[\x00\u202e\ud800]", html)
    data = data_of(html)
    assert data["nodes"]["name"] == [node.name for node in picture.nodes]
    assert data["examples"][0]["tokens"] == picture.examples[0].tokens
    ET.fromstring(circuit_svg(picture))


def test_the_page_holds_every_number(make_picture: Make):
    picture = make_picture(kept=30)
    html = circuit_page(picture)
    data = data_of(html)
    assert decoded(data["nodes"]["score"]) == [float(f"{n.score:.3e}") for n in picture.nodes]
    rows = sorted(picture.edges, key=lambda edge: (edge.source, edge.target, edge.reads))
    assert sums(data["edges"]["source"]) == [edge.source for edge in rows]
    assert sums(data["edges"]["target"]) == [edge.target for edge in rows]
    assert decoded(data["edges"]["low"]) == [float(f"{edge.low or 0:.3e}") for edge in rows]
    assert data["edges"]["kept"].count("1") == picture.size == 30
    assert [point[0] for point in data["curve"]] == [point.size for point in picture.curve]
    weights = data["examples"][0]["attention"]
    for name, flat in weights.items():
        rows = picture.examples[0].attention[name]
        wanted = [round(1000 * w) for query, row in enumerate(rows) for w in row[: query + 1]]
        assert flat == wanted
    assert "30 of " in html
    assert "0.912" in html
    assert "0.874 to 0.941" in html


def test_without_scripts_there_is_a_picture_a_curve_and_tables(make_picture: Make):
    picture = make_picture(kept=40, warnings=["Only 8 prompts."])
    html = re.sub("<script.*?</script>", "", circuit_page(picture), flags=re.DOTALL)
    elements = Elements(html)
    assert len(elements.named("svg")) == 2
    assert len(elements.named("table")) == 2
    assert "Only 8 prompts." in html
    strongest = max((e for e in picture.edges if e.kept), key=lambda e: abs(e.score))
    assert picture.nodes[strongest.source].name in html
    assert picture.end_of(strongest) in html
    hidden = {found["id"] for _, found in elements.tags if "data-live" in found and "id" in found}
    assert hidden == {"circuit-controls", "circuit-tables", "circuit-rows"}
    assert all("hidden" in found for _, found in elements.tags if "data-live" in found)


def test_the_script_finds_every_element_it_asks_for(make_picture: Make):
    ids = {found["id"] for _, found in Elements(circuit_page(make_picture())).tags if "id" in found}
    asked = re.search(r'\["app",.*?\]', script(), re.DOTALL)
    assert asked
    assert {f"circuit-{name}" for name in json.loads(asked[0])} <= ids
    assert "circuit-data" in ids


def test_twenty_thousand_edges_are_a_file_of_a_few_hundred_kilobytes(make_picture: Make):
    picture = make_picture(12, 12, 4, 20_000, "edges", intervals=False)
    assert len(picture.edges) == 18_571  # 157 writers, 253 readers: the graph of a 160M model
    more = [replace(edge, score=edge.score / 3) for edge in picture.edges[: 20_000 - 18_571]]
    picture = replace(picture, edges=[*picture.edges, *more])
    assert len(circuit_page(picture).encode()) < 700_000
    assert len(circuit_svg(picture)) < 250_000


def test_the_script_is_valid_and_makes_no_html_of_data():
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script())
    assert not re.search(r"https?:|fetch\(|XMLHttp|WebSocket|import\(", script())
    if node := shutil.which("node"):
        subprocess.run([node, "--check", "-"], input=script(), text=True, check=True, timeout=60)


# the still picture


def test_the_picture_shows_the_circuit(make_picture: Make):
    picture = make_picture(kept=30)
    svg = circuit_svg(picture)
    kept = [node for node in picture.nodes if node.kept and node.counts]
    titles = [(e.find(f"{SVG}title"), e) for e in by_class(svg, "node")]
    shown = {str(title.text).split(":")[0] for title, _ in titles if title is not None}
    assert shown == {node.name for node in kept}
    assert len(by_class(svg, "minus")) == sum(node.score < 0 for node in kept) + 1  # one in the key
    (faint,) = by_class(svg, "faint")
    assert str(faint.get("d")).count("M") == sum(node.counts for node in picture.nodes)
    (edges,) = by_class(svg, "edges")
    for css, sign in (("pos", 1), ("neg", -1)):
        paths = [p for p in edges if p.get("class") == css]
        count = sum(str(p.get("d")).count("M") for p in paths)
        assert count == sum(edge.kept and edge.score * sign > 0 for edge in picture.edges)
        assert all((p.get("stroke-dasharray") is not None) == (sign < 0) for p in paths)
    assert "“ Mary”" in svg


def test_layers_stand_upward_heads_across_and_mlps_last(make_picture: Make):
    picture = make_picture(5, 6, 3)
    layout = Layout(picture)
    place = {node.name: layout.place(node) for node in picture.nodes}
    assert place["logits"][1] < place["a4.h0"][1] < place["a0.h0"][1] < place["input"][1]
    across = [place[f"a2.h{head}"][0] for head in range(6)] + [place["m2"][0]]
    assert across == sorted(across)
    steps = [b - a for a, b in pairwise(across)]
    assert min(steps[1], steps[3]) > max(steps[0], steps[2], steps[4])  # groups stand together
    for x, y in place.values():
        assert 0 < x < layout.width
        assert 0 < y < layout.height


def test_strength_is_size_and_width(make_picture: Make):
    layout = Layout(make_picture())
    limit = layout.node_limit
    radii = [layout.radius(limit * share) for share in (0, 0.1, 0.5, 1)]
    assert radii == sorted(set(radii))
    assert radii[-1] == pytest.approx(layout.largest)
    assert layout.radius(-limit) == layout.radius(limit)
    levels = [layout.edge_level(layout.edge_limit * share) for share in (0, 0.1, 0.5, 1)]
    assert levels == sorted(levels)
    assert levels[0] == 0
    assert levels[-1] == 7


def test_keys_and_values_of_a_group_lead_to_all_its_heads(make_picture: Make):
    picture = make_picture(3, 6, 2)
    for edge in picture.edges:
        heads = picture.readers(edge)
        assert len(heads) == (3 if edge.reads in ("k", "v") else 1)
        assert edge.target in heads
        ends = Layout(picture).curve(edge)
        if edge.reads == "k":
            middle = sum(Layout(picture).place(picture.nodes[at])[0] for at in heads) / 3
            assert ends[-1][0] == pytest.approx(middle)


@pytest.mark.parametrize("level", ["nodes", "edges"])
@pytest.mark.parametrize(
    ("layers", "heads", "groups"), [(1, 1, 1), (2, 3, 3), (3, 32, 8), (40, 2, 1)]
)
def test_every_shape_is_drawn(make_picture: Make, level: Any, layers: int, heads: int, groups: int):
    kept = min(6, layers * (heads + 1))
    picture = make_picture(layers, heads, groups, kept, level, intervals=False)
    if level == "nodes":
        picture = replace(picture, edges=[])
    data = data_of(circuit_page(picture))
    assert len(data["layout"]["rows"]) == layers
    assert ET.fromstring(circuit_svg(picture)).get("width") == f"{data['layout']['width']:g}"


def test_too_many_edges_are_said_to_be_left_out(make_picture: Make):
    picture = make_picture(8, 8, 8, 2_500)
    svg = circuit_svg(picture)
    (edges,) = by_class(svg, "edges")
    assert sum(str(path.get("d")).count("M") for path in edges) == 2_000
    assert "500 weaker edges of the circuit are not drawn" in svg


def test_dot_holds_the_circuit_and_no_more(make_picture: Make):
    picture = make_picture(3, 4, 4, 12)
    dot = circuit_dot(picture)
    kept = {(edge.source, edge.target) for edge in picture.edges if edge.kept}
    links = {(int(a), int(b)) for a, b in re.findall(r"n(\d+) -> n(\d+) ", dot)}
    assert links == kept
    assert dot.count("style=dashed") == sum(e.kept and e.score < 0 for e in picture.edges)
    assert set(map(int, re.findall(r"^  n(\d+) \[", dot, re.MULTILINE))) == {
        at for at, node in enumerate(picture.nodes) if node.kept or not node.counts
    }
    wild = circuit_dot(hostile(picture))
    assert len(re.findall(r'(?<!\\)"', wild)) % 2 == 0
    assert wild.count("\n") == dot.count("\n")


# the curve


def test_the_curve_marks_the_nearest_measured_size(make_picture: Make):
    picture = make_picture()
    svg = circuit_curve(picture)
    (now,) = by_class(svg, "now")
    left, width, low, high = (
        float(now.get(f"data-{k}", "")) for k in ("left", "width", "low", "high")
    )
    share = math.log(picture.size / low) / math.log(high / low)
    assert now.get("transform") == f"translate({left + share * width:.1f} 0)"
    dots = [e for e in ET.fromstring(svg).iter() if e.get("data-x")]
    assert len(dots) == 2 * len(picture.curve)
    point = nearest(picture, 10**9)
    assert point == max(picture.curve, key=lambda point: point.size)


def test_a_curve_may_be_missing_or_undefined(make_picture: Make):
    assert circuit_curve(make_picture(curve=[])) == ""
    assert nearest(make_picture(curve=[]), 5) is None
    undefined = [CurvePoint(5, math.nan, math.nan, math.nan, None), CurvePoint(9, 0.5, 0.4, 0.6)]
    picture = make_picture(curve=undefined)
    assert data_of(circuit_page(picture))["curve"][0] == [5, None, None, None, None]


# the data


@given(st.lists(FINITE))
def test_columns_keep_four_digits(values: list[float]):
    largest = max(map(abs, values), default=0.0)
    for value, back in zip(values, decoded(numbers(values)), strict=True):
        wanted = float(f"{value:.3e}")
        assert back == wanted or abs(wanted) < 1e-40 * largest


@given(st.text())
def test_packed_text_cannot_end_its_element(token: str):
    node = Node(token, "head", 0, 0, 1.0, None, None, True)
    picture = CircuitPicture("", "", "", 1, 1, 1, "nodes", [node], [], [], 1, answer=token)
    text = packed(picture)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text)["answer"] == token


def test_the_ranking_is_the_one_the_circuit_was_cut_from():
    def picture(kept: list[bool]) -> CircuitPicture:
        scores = [5.0, -4.0, 3.0, -2.0, 1.0]
        nodes = [
            Node(f"a{at}", "head", at, 0, score, None, None, inside)
            for at, (score, inside) in enumerate(zip(scores, kept, strict=True))
        ]
        return CircuitPicture("", "", "", 5, 1, 1, "nodes", nodes, [], [], 2)

    assert not picture([True, True, False, False, False]).signed_order
    assert picture([True, False, True, False, False]).signed_order
    assert not picture([True, False, False, False, False]).signed_order


EMBED = Node("input", "embed", 0, 0, 0.0, None, None, True)
HEAD = Node("a0.h0", "head", 0, 0, 1.0, 0.5, 1.5, True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kv_groups": 2}, "1 heads in 2 KV groups"),
        ({"level": "both"}, "level is 'both'"),
        ({"nodes": [replace(HEAD, layer=3)]}, "'a0.h0' is in layer 3 of 2"),
        ({"nodes": [replace(HEAD, unit=1)]}, "'a0.h0' is head 1 of 1"),
        ({"nodes": [replace(HEAD, kind="neuron")]}, "is a 'neuron'"),
        ({"nodes": [replace(HEAD, score=math.nan)]}, "give finite numbers"),
        ({"nodes": [replace(HEAD, low=None)]}, "one end of an interval"),
        ({"edges": [EdgeRow(0, 9, "q", 1.0, None, None, True)]}, "names node 9"),
        ({"edges": [EdgeRow(0, 1, "x", 1.0, None, None, True)]}, "unknown input"),
        ({"edges": [EdgeRow(0, 1, "mlp", 1.0, None, None, True)]}, "its target must be a mlp"),
        ({"examples": [Example(["a", "b"], {"a0.h0": [[1.0], [1.0]]})]}, "does not fit its 2"),
        ({"examples": [Example(["a"], {"a0.h0": [[math.inf]]})]}, "holds NaN or infinity"),
        ({"curve": [CurvePoint(0, 0.0, 0.0, 0.0)]}, "size below 1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(changes: dict[str, Any], words: str):
    arguments: dict[str, Any] = {
        "title": "", "subtitle": "", "footer": "", "layers": 2, "heads": 1, "kv_groups": 1,
        "level": "nodes", "nodes": [EMBED, HEAD], "edges": [], "curve": [], "size": 1,
    }  # fmt: skip
    CircuitPicture(**arguments)
    with pytest.raises(ExciseError, match=re.escape(words)):
        CircuitPicture(**{**arguments, **changes})


def test_where_only_edges_have_scores_a_node_has_the_sum_of_what_it_writes(make_picture: Make):
    picture = make_picture()
    bare = replace(
        picture, nodes=[replace(n, score=0.0, low=None, high=None) for n in picture.nodes]
    )
    html = circuit_page(bare)
    found = decoded(data_of(html)["nodes"]["score"])
    for at, node in enumerate(picture.nodes):
        total = sum(edge.score for edge in picture.edges if edge.source == at) if node.counts else 0
        assert found[at] == pytest.approx(total, rel=6e-4, abs=1e-12)
    assert "the sum over the edges it writes" in html
    assert "the sum over the edges it writes" not in circuit_page(picture)
    assert by_class(circuit_svg(bare), "minus")
