"""The circuit page in a real browser, driven by mouse and keys: what a reader does, and sees."""

import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from excise.viz.circuit.data import CircuitPicture, EdgeRow, Example, Node
from excise.viz.circuit.layout import Layout
from excise.viz.circuit.page import circuit_page, circuit_svg
from excise.viz.page import write_page


Make = Callable[..., CircuitPicture]
Browser = Any  # the fixture's class lives in conftest.py, which tests cannot import
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
SHOWN = (
    "[...document.querySelectorAll('.node:not(.outside)')].filter(e => e.style.display !== 'none')"
)
NAMES = f"{SHOWN}.map(e => e.getAttribute('aria-label').split(',')[0]).sort()"
LIT = f"{SHOWN}.filter(e => !e.classList.contains('faded'))" + NAMES[len(SHOWN) :]


@pytest.fixture(scope="module")
def picture(make_picture: Make) -> CircuitPicture:
    return make_picture(4, 6, 2, 30, "edges")


@pytest.fixture(scope="module")
def file(picture: CircuitPicture, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "circuit.html", circuit_page(picture))


@pytest.fixture
def tab(chromium: Browser, file: Path) -> Iterator[Browser]:
    """The page, fresh; whatever a test does, nothing may be complained of or asked of the net."""
    chromium.open(file)
    yield chromium
    assert chromium.complaints() == []


def kept_names(picture: CircuitPicture) -> list[str]:
    return sorted(node.name for node in picture.nodes if node.kept and node.counts)


def top(picture: CircuitPicture, size: int) -> list[Any]:
    """The strongest edges of the circuit."""
    kept = [edge for edge in picture.edges if edge.kept]
    return sorted(kept, key=lambda edge: -abs(edge.score))[:size]


def paths_through(picture: CircuitPicture, edges: list[Any], pin: int) -> set[int]:
    """Nodes on paths through one, by trying all edges until nothing changes."""
    alive = {at for edge in edges for at in (edge.source, *_alone(picture, edge))}
    found = []
    for up in (True, False):
        seen = {pin}
        while True:
            more = set()
            for edge in edges:
                ends = set(picture.readers(edge)) & (alive | {pin})
                more |= {edge.source} if up and ends & seen else set()
                more |= ends if not up and edge.source in seen else set()
            if more <= seen:
                break
            seen |= more
        found.append(seen)
    return found[0] | found[1]


def _alone(picture: CircuitPicture, edge: Any) -> list[int]:
    readers = picture.readers(edge)
    return readers if len(readers) == 1 else []


def node(name: str) -> str:
    return f".node[aria-label^='{name},'] .body"


def test_it_starts_as_the_circuit_that_was_found(tab: Browser, picture: CircuitPicture):
    assert tab.run(NAMES) == kept_names(picture)
    assert tab.run("document.querySelector('#circuit-count').textContent").startswith("30 of ")
    assert tab.run("document.querySelectorAll('[data-live][hidden]').length") == 0
    assert tab.run("document.querySelectorAll('[data-still]:not([hidden])').length") == 0
    assert tab.painted() > 1000


def test_the_slider_by_keys_changes_the_circuit(tab: Browser, picture: CircuitPicture):
    before = tab.painted()
    tab.run("document.querySelector('#circuit-size').focus()")
    tab.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    size = int(tab.run("document.querySelector('#circuit-count').textContent").split()[0])
    assert size < 30
    assert tab.painted() < before
    saved = json.loads(tab.exported("json"))
    wanted = [(picture.nodes[e.source].name, picture.end_of(e)) for e in top(picture, size)]
    assert [(edge["source"], edge["target"]) for edge in saved["edges"]] == wanted
    tab.run("document.querySelector('#circuit-size').focus()")
    tab.press("End")
    assert tab.run(f"{SHOWN}.length") == sum(n.counts for n in picture.nodes)
    assert tab.painted() > before
    measured = max(picture.curve, key=lambda point: point.size)
    words = tab.run("document.querySelector('#circuit-faith').textContent")
    assert f"{measured.faithfulness:.2g}" in words
    tab.click("#circuit-reset")
    assert tab.run(NAMES) == kept_names(picture)


def test_the_mark_in_the_curve_follows_the_size(tab: Browser):
    where = "document.querySelector('.now').getBoundingClientRect().left"
    before = tab.run(where)
    tab.click("#circuit-app .dot[data-x]")
    assert tab.run(where) != before
    assert tab.run("document.querySelector('.now text').textContent") == tab.run(
        "document.querySelector('#circuit-count').textContent.split(' ')[0]"
    )


def test_a_click_pins_and_only_paths_through_it_stay(tab: Browser, picture: CircuitPicture):
    edges = top(picture, 30)
    middle = next(
        at for at, n in enumerate(picture.nodes)
        if n.kind == "head" and 0 < n.layer < 3 and any(e.source == at for e in edges)
        and any(at in picture.readers(e) for e in edges)
    )  # fmt: skip
    name = picture.nodes[middle].name
    tab.click(node(name))
    wanted = {picture.nodes[at].name for at in paths_through(picture, edges, middle)}
    bars = {"input", "logits"}
    assert set(tab.run(LIT)) == wanted - bars
    assert set(tab.run(LIT)) < set(tab.run(NAMES))
    assert tab.run("document.querySelector('#circuit-detail h3').textContent") == name
    assert tab.run("document.querySelectorAll('[aria-pressed=true].node').length") == 1
    saved = json.loads(tab.exported("json"))
    assert saved["pinned"] == name
    assert {one["name"] for one in saved["nodes"]} == wanted | (bars & wanted)
    tab.click(node(name))
    assert tab.run("document.querySelectorAll('[aria-pressed=true].node').length") == 0
    tab.click(node(name))
    tab.press("Escape")
    assert tab.run(LIT) == kept_names(picture)


def test_hovering_shows_the_numbers(tab: Browser, picture: CircuitPicture):
    strongest = max((n for n in picture.nodes if n.kept), key=lambda n: abs(n.score))
    tab.hover(node(strongest.name))
    words = tab.run("document.querySelector('#circuit-card:not([hidden])').textContent")
    assert strongest.name in words
    assert f"{abs(strongest.score):.4g}" in words
    assert f"attention head {strongest.unit} of layer {strongest.layer}" in words
    assert f"{abs(strongest.low or 0):.3g}" in words
    tab.hover("h1")
    assert tab.run("document.querySelector('#circuit-card').hidden")


def test_arrow_keys_walk_and_enter_pins(tab: Browser, picture: CircuitPicture):
    assert tab.run("document.querySelectorAll('.xk [tabindex=\"0\"]').length") == 1
    tab.run("document.querySelector('.xk [tabindex=\"0\"]').focus()")
    focus = "Number(document.activeElement.dataset.node)"
    first = tab.run(focus)
    place = Layout(picture).place
    tab.press("ArrowUp")
    second = tab.run(focus)
    assert second != first
    assert place(picture.nodes[second])[1] < place(picture.nodes[first])[1]
    tab.press("ArrowDown", "ArrowDown", "ArrowUp", "ArrowDown")
    assert tab.run("document.activeElement.matches(':focus-visible')")
    assert not tab.run("document.querySelector('#circuit-card').hidden")
    tab.press("Enter")
    assert tab.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.press("Escape")
    assert tab.run("document.activeElement.getAttribute('aria-pressed')") == "false"


def test_filters_hide_nodes_and_edges(tab: Browser, picture: CircuitPicture):
    tab.click("[data-show=negative]")
    saved = json.loads(tab.exported("json"))
    assert [e["score"] > 0 for e in saved["edges"]] == [True] * sum(
        edge.kept and edge.score > 0 for edge in picture.edges
    )
    tab.click("[data-show=to-q]")
    saved = json.loads(tab.exported("json"))
    assert "q" not in {edge["reads"] for edge in saved["edges"]}
    tab.click("[data-show=mlp]")
    assert not [name for name in tab.run(NAMES) if name.startswith("m")]
    assert tab.run(NAMES) == [name for name in kept_names(picture) if name.startswith("a")]


@pytest.mark.parametrize(
    ("query", "pattern"), [("a3", r"a3\.h\d"), ("a3.h5", "a3.h5"), ("m1", "m1")]
)
def test_search_finds_by_name(tab: Browser, picture: CircuitPicture, query: str, pattern: str):
    tab.run("document.querySelector('#circuit-query').focus()")
    tab.type(query)
    found = tab.run(
        "[...document.querySelectorAll('.node.hit')]"
        ".map(e => e.getAttribute('aria-label').split(',')[0])"
    )
    wanted = [n.name for n in picture.nodes if re.fullmatch(pattern, n.name)]
    assert sorted(found) == sorted(wanted)
    tab.press("Enter")
    strongest = max((n for n in picture.nodes if n.name in wanted), key=lambda n: abs(n.score))
    assert tab.run("document.querySelector('#circuit-detail h3').textContent") == strongest.name


def test_a_pinned_head_shows_where_it_looks(tab: Browser, picture: CircuitPicture):
    name = next(iter(picture.examples[0].attention))
    tab.click(node(name))
    assert tab.run("document.querySelectorAll('.xk-attention text').length") == 14
    rows = picture.examples[0].attention[name]
    best = max(range(14), key=lambda key: rows[13][key])
    words = tab.run("document.querySelector('.xk-attention').getAttribute('aria-label')")
    assert words.replace("\xa0", " ").startswith(
        f"“{picture.examples[0].tokens[13]}” looks at “{picture.examples[0].tokens[best]}” "
        f"{rows[13][best]:.2f}"
    )
    tab.run(
        "(() => { const s = document.querySelector('.xk-side select'); s.value = '1';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    tab.settle()
    assert tab.run("document.querySelectorAll('.xk-attention text').length") == 9


def test_tables_sort_and_hold_few_elements(chromium: Browser, make_picture: Make, tmp_path: Path):
    picture = make_picture(8, 8, 8, 2_000)
    chromium.open(write_page(tmp_path / "many.html", circuit_page(picture)))
    chromium.click("[data-table=edges]")
    assert chromium.run("document.querySelector('#circuit-caption').textContent").startswith(
        "2,000"
    )
    assert chromium.run("document.querySelectorAll('#circuit-rows tbody tr').length") < 200
    first = "document.querySelector('#circuit-rows tbody tr:not(.spacer)').children[2].textContent"
    wanted = top(picture, 1)[0].score
    assert chromium.number(first) == pytest.approx(wanted, rel=1e-3)
    chromium.click("#circuit-rows th:nth-child(3) button")
    wanted = min(edge.score for edge in picture.edges if edge.kept)
    assert chromium.number(first) == pytest.approx(wanted, rel=1e-3)
    assert (
        chromium.run("document.querySelector('#circuit-rows [aria-sort=ascending]').textContent")
        == "score"
    )
    chromium.run("document.querySelector('#circuit-rows').scrollTop = 1e9")
    chromium.settle()
    wanted = max(edge.score for edge in picture.edges if edge.kept)
    last = first.replace("querySelector('#circuit-rows tbody tr:not(.spacer)')",
                         "querySelector('#circuit-rows tbody tr:nth-last-child(2)')")  # fmt: skip
    assert chromium.number(last) == pytest.approx(wanted, rel=1e-3)
    assert chromium.complaints() == []


def test_the_saved_svg_is_the_still_one(tab: Browser, picture: CircuitPicture):
    saved = ET.fromstring(tab.exported("svg"))

    def curves(root: ET.Element) -> list[list[float]]:
        (group,) = [e for e in root.iter() if e.get("class") == "edges"]
        paths = "".join(str(path.get("d")) for path in group)
        found = [re.findall(r"-?[\d.]+", one) for one in paths.split("M") if one]
        return sorted([float(x) for x in one] for one in found)

    still = curves(ET.fromstring(circuit_svg(picture)))
    ours = curves(saved)
    assert len(still) == len(ours) == 30
    for one, other in zip(still, ours, strict=True):
        assert one == pytest.approx(other, abs=0.11)
    texts = {e.text for e in saved.iter() if e.tag.endswith("text")}
    assert {"“ Mary”", "embedding", "MLP"} <= texts
    assert not [e for e in saved.iter() if e.get("tabindex")]


def test_the_saved_png_has_twice_the_size_of_the_graph(tab: Browser, picture: CircuitPicture):
    png = tab.exported("png")
    width, height = struct.unpack(">II", png[16:24])
    layout = Layout(picture)
    assert (width, height) == (2 * layout.width, 2 * layout.height)
    assert len(png) > 10_000


def test_dark_mode_changes_paper_and_edges(tab: Browser):
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = "document.querySelector('canvas').toDataURL().length"
    light = tab.run(paper), tab.run(colours)
    tab.scheme("dark")
    tab.settle()
    dark = tab.run(paper), tab.run(colours)
    assert sum(map(int, re.findall(r"\d+", dark[0]))) < 120
    assert sum(map(int, re.findall(r"\d+", light[0]))) > 700
    assert light[1] != dark[1]


@pytest.mark.parametrize("wide", [360, 800, 1600])
def test_no_width_makes_the_page_scroll_sideways(chromium: Browser, file: Path, wide: int):
    chromium.open(file, wide=wide)
    assert chromium.run("document.documentElement.scrollWidth") <= wide
    assert chromium.painted() > 500


def test_hostile_names_and_tokens_stay_text(
    chromium: Browser, picture: CircuitPicture, tmp_path: Path
):
    names = {n.name: f"{HOSTILE}{at}" for at, n in enumerate(picture.nodes)}
    tokens = picture.examples[0].tokens
    attention = {names[name]: rows for name, rows in picture.examples[0].attention.items()}
    wild = replace(
        picture, title=HOSTILE, answer=HOSTILE,
        nodes=[replace(n, name=names[n.name]) for n in picture.nodes],
        examples=[Example([HOSTILE] * len(tokens), attention)],
    )  # fmt: skip
    chromium.open(write_page(tmp_path / "wild.html", circuit_page(wild)))
    for button in ("nodes", "edges"):
        chromium.click(f"[data-table={button}]")
    chromium.run("document.querySelector('.xk-list button').click()")
    chromium.settle()
    chromium.hover(".node .body")
    chromium.exported("svg")
    assert chromium.run("document.querySelectorAll('img, iframe').length") == 0
    assert chromium.run("document.title") == HOSTILE
    assert chromium.run("document.querySelector('#circuit-detail h3').textContent").startswith(
        HOSTILE
    )
    assert chromium.complaints() == []


def test_an_injected_script_does_not_run(chromium: Browser, file: Path, tmp_path: Path):
    html = file.read_text(encoding="utf-8")
    bad = html.replace("</main>", "<script>document.title = 'owned'</script></main>")
    chromium.open(write_page(tmp_path / "bad.html", bad))
    assert chromium.run("document.title") != "owned"
    assert any("script-src" in words for words in chromium.complaints())


def test_all_edges_of_a_model_are_drawn_at_once(
    chromium: Browser, make_picture: Make, tmp_path: Path
):
    picture = make_picture(12, 12, 4, 300, "edges", intervals=False)
    chromium.open(write_page(tmp_path / "big.html", circuit_page(picture)))
    before = chromium.painted()
    chromium.run("document.querySelector('#circuit-size').focus()")
    chromium.press("End")
    assert chromium.run("document.querySelector('#circuit-count').textContent").startswith("18,571")
    assert chromium.painted() > 1.5 * before
    spent = chromium.run("performance.getEntriesByName('circuit-draw').map(e => e.duration)")
    assert min(spent[-1:]) < 1000  # 20 ms on a quiet machine; this one may be anything but
    assert chromium.complaints() == []


def test_a_circuit_of_nodes_alone_is_a_page_too(
    chromium: Browser, make_picture: Make, tmp_path: Path
):
    picture = make_picture(4, 6, 6, 9, "nodes", edges=[], curve=[], examples=[], answer="")
    chromium.open(write_page(tmp_path / "nodes.html", circuit_page(picture)))
    assert chromium.run(NAMES) == kept_names(picture)
    chromium.run("document.querySelector('#circuit-size').focus()")
    chromium.press("ArrowRight")
    more = sorted((n for n in picture.nodes if n.counts), key=lambda n: -abs(n.score))[:10]
    assert chromium.run(NAMES) == sorted(n.name for n in more)
    chromium.click(node(more[0].name))
    assert chromium.run(LIT) == [more[0].name]
    assert chromium.complaints() == []


def test_a_shared_key_leads_to_the_head_that_is_in_the_circuit(chromium: Browser, tmp_path: Path):
    """By hand: two heads share keys; the weak edges are the circuit, a strong one is not."""

    def head(layer: int, unit: int, kept: bool) -> Node:
        return Node(f"a{layer}.h{unit}", "head", layer, unit, 1.0 - unit / 4, None, None, kept)

    def edge(source: int, target: int, reads: str, score: float, kept: bool) -> EdgeRow:
        return EdgeRow(source, target, reads, score, None, None, kept)

    nodes = [
        Node("input", "embed", 0, 0, 0.0, None, None, True),
        head(0, 0, True), head(0, 1, False), head(1, 0, False), head(1, 1, True),
        Node("logits", "logits", 2, 0, 0.0, None, None, True),
    ]  # fmt: skip
    edges = [
        edge(0, 1, "q", 0.3, True),
        edge(1, 3, "k", -0.2, True),  # the target is any head of the group
        edge(4, 5, "logits", 0.1, True),
        edge(2, 5, "logits", 9.0, False),
    ]
    picture = CircuitPicture("t", "", "", 2, 2, 1, "edges", nodes, edges, [], 3)
    chromium.open(write_page(tmp_path / "shared.html", circuit_page(picture)))
    assert chromium.run(NAMES) == ["a0.h0", "a1.h1"]
    chromium.click(node("a0.h0"))
    saved = json.loads(chromium.exported("json"))
    assert [one["name"] for one in saved["nodes"]] == ["input", "a0.h0", "a1.h1", "logits"]
    assert [one["target"] for one in saved["edges"]] == ["a0.h0 q", "a1.h0 … a1.h1 k", "logits"]
    chromium.press("Escape")
    chromium.run("document.querySelector('#circuit-size').focus()")
    chromium.press("ArrowRight")
    assert chromium.run(NAMES) == ["a0.h0", "a0.h1", "a1.h1"]
    assert chromium.complaints() == []
