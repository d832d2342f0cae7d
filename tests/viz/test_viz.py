"""The pictures hold what they were given, are well-formed, and nothing in them can come alive."""

import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from excise.core.errors import ExciseError
from excise.viz.colour import STEPS, Scale, contrast, palette, ramp
from excise.viz.grid import build
from excise.viz.heatmap import NOTABLE, heatmap
from excise.viz.page import POLICY, Section, page, write_page
from excise.viz.table import table
from excise.viz.text import MINUS, escape, number, prose
from excise.viz.tokens import token_heatmap
from hypothesis import given, settings
from hypothesis import strategies as st


SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</script></style></svg><img src=x onerror=\"alert('1')\">&amp;]]>\x00\x1b\u202e\ud800"
NAN = math.nan


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str):
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def cells(svg: str) -> list[ET.Element]:
    return [rect for rect in ET.fromstring(svg).iter(f"{SVG}rect") if "data-value" in rect.attrib]


def tooltip(cell: ET.Element) -> str:
    title = cell.find(f"{SVG}title")
    assert title is not None
    assert title.text
    return title.text


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]


def a_page(**changes: str) -> str:
    sections = [
        Section(HOSTILE, prose(HOSTILE), HOSTILE),
        Section("Heads", heatmap([[0.5, -1.0]], title=HOSTILE, row_label=HOSTILE)),
        Section("Tokens", token_heatmap([HOSTILE, " a"], [1.0, NAN], title=HOSTILE)),
        Section("Table", table([HOSTILE, "n"], [[HOSTILE, 1]], caption=HOSTILE)),
    ]
    return page(HOSTILE, sections, **{"subtitle": HOSTILE, "footer": HOSTILE, **changes})


# heatmap


finite = st.floats(allow_nan=False, allow_infinity=False)
grids = st.integers(1, 70).flatmap(
    lambda width: st.lists(st.lists(finite, min_size=width, max_size=width), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=60)
@given(grids, st.text(max_size=60), st.text(max_size=20))
def test_any_finite_grid_with_any_words_is_well_formed(
    values: list[list[float]], title: str, label: str
):
    svg = heatmap(values, title=title, column_label=label, max_columns=16)
    shown = [float(cell.attrib["data-value"]) for cell in cells(svg)]
    size = math.ceil(len(values[0]) / 16)
    bins = [row[at : at + size] for row in values for at in range(0, len(row), size)]
    assert [abs(value) for value in shown] == [max(map(abs, found)) for found in bins]
    assert all(value in found for value, found in zip(shown, bins, strict=True))


def test_each_cell_says_its_place_and_its_number():
    values = [[0.125, -2.5, 3.0], [1e-05, 0.0, -0.75]]
    found = {}
    for cell in cells(heatmap(values, title="t")):
        match = re.fullmatch(r"layer (\d+), head (\d+): (\S+)", tooltip(cell))
        assert match
        row, column, value = match.groups()
        found[int(row), int(column)] = float(value.replace(MINUS, "-"))
        assert float(cell.attrib["data-value"]) == values[int(row)][int(column)]
    assert found == {(r, c): values[r][c] for r in range(2) for c in range(3)}


def test_row_zero_stands_at_the_bottom():
    low, high = cells(heatmap([[1.0], [2.0]], title="t"))
    assert float(low.attrib["y"]) > float(high.attrib["y"])


def test_intervals_are_in_the_tooltip_the_list_and_the_caption():
    svg = heatmap(
        [[0.5, 0.25]], title="t", low=[[0.375, -1.0]], high=[[0.625, 1.5]], interval="95 % interval"
    )
    first, second = cells(svg)
    assert "95 % interval: +0.375 to +0.625" in tooltip(first)
    assert "includes 0" not in tooltip(first)
    assert "(includes 0)" in tooltip(second)
    assert (first.attrib["data-low"], first.attrib["data-high"]) == ("0.375", "0.625")
    assert "0.375 to 0.625" in texts(svg)
    assert "95 % interval: includes 0 in 1 of 2 cells." in texts(svg)


def test_the_largest_are_framed_signed_and_listed():
    values = [[0.1 * column - 0.35 for column in range(8)]]
    svg = heatmap(values, title="t")
    marks = [e for e in ET.fromstring(svg).iter() if "mark" in e.attrib.get("class", "").split()]
    signs = [e.text for e in ET.fromstring(svg).iter() if "sign" in e.attrib.get("class", "")]
    assert len(marks) == len(signs) == NOTABLE
    assert set(signs) == {"+", MINUS}
    assert f"{MINUS}0.350" in texts(svg)
    assert "layer 0, head 0" in texts(svg)


def test_nan_is_hatched_named_and_never_notable():
    svg = heatmap([[NAN, 1.0], [NAN, -1.0]], title="t")
    assert svg.count('class="hatch') == 2
    assert tooltip(cells(svg)[0]) == "layer 0, head 0: NaN, not a number"
    assert "2 of 4 values are NaN; a cell without any number is hatched." in texts(svg)
    assert "NaN" not in ET.fromstring(svg).attrib["aria-label"]


@pytest.mark.parametrize(
    "values", [[[0.0] * 3] * 3, [[0.0]], [[5.0]], [[-3.0, -1.0]], [[NAN]], [[math.inf, -math.inf]]]
)
def test_odd_grids_are_drawn(values: list[list[float]]):
    svg = heatmap(values, title="t")
    assert len(cells(svg)) == len(values) * len(values[0])
    assert ET.fromstring(svg).attrib["role"] == "img"


def test_all_zero_says_so_and_marks_nothing():
    svg = heatmap([[0.0, 0.0]], title="t")
    assert "Every value is zero." in texts(svg)
    assert 'class="c mark' not in svg


def test_the_printed_scale_is_symmetric_with_a_negative_value_and_starts_at_zero_without():
    signed = texts(heatmap([[-0.5, 2.0]], title="t"))
    assert {"+2.00", "0", f"{MINUS}2.00"} <= set(signed)
    plain = texts(heatmap([[0.5, 2.0]], title="t"))
    assert {"2.00", "0"} <= set(plain)
    assert not any(MINUS in text for text in plain)


def test_a_shared_scale_is_kept_and_what_lies_beyond_it_is_counted():
    svg = heatmap([[1.0, 9.0]], title="t", scale=Scale(4.0))
    assert "+4.00" in texts(svg)
    assert "1 of 2 cells lie beyond the scale." in texts(svg)


def test_wide_grids_keep_the_extreme_of_each_bin():
    values = [[0.001] * 1536 for _ in range(3)]
    values[1][1033] = -0.9
    values[2][5] = NAN
    svg = heatmap(values, title="t", column_label="neuron")
    assert len(cells(svg)) == 3 * 64
    (extreme,) = [cell for cell in cells(svg) if cell.attrib["data-value"] == "-0.9"]
    assert tooltip(extreme) == (f"layer 1, neuron 1033: {MINUS}0.9\nlargest of neuron 1032 to 1055")
    assert any("24 neighbours (neuron)" in text for text in texts(svg))
    assert "1 of them NaN" in tooltip(cells(svg)[128])


def test_bins_do_not_lose_the_last_columns():
    grid = build([list(range(130))], max_columns=64)
    assert [cell.last for cell in grid.flat()][-2:] == [128, 129]
    assert [cell.value for cell in grid.flat()][-1] == 129


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"values": []}, "values is empty"),
        ({"values": [[]]}, "values is empty"),
        ({"values": [[1.0, 2.0], [1.0]]}, "row 0 has 2 columns, row 1 has 1"),
        ({"values": [[1.0]], "low": [[1.0]]}, "both ends"),
        ({"values": [[1.0]], "low": [[1.0]], "high": [[1.0, 2.0]]}, "high is 1 x 2"),
    ],
)
def test_grids_that_do_not_fit_are_refused_by_name(arguments: dict, words: str):
    with pytest.raises(ValueError, match=words):
        heatmap(title="t", **arguments)


# colour


def test_text_on_every_colour_is_readable_in_both_schemes():
    for name, pairs in palette().items():
        for fill, ink in pairs:
            assert contrast(fill, ink) >= 4.5, (name, fill, ink)


@pytest.mark.parametrize("arm", ["n", "p", "s"])
@pytest.mark.parametrize("scheme", [0, 1])
def test_every_arm_is_ordered_by_lightness(arm: str, scheme: int):
    paper = ("#ffffff", "#000000")[scheme]
    names = [f"xc-{arm}{step}" for step in range(0 if arm == "s" else 1, STEPS + 1)]
    steps = [contrast(palette()[name][scheme][0], paper) for name in names]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(steps)


def test_a_ramp_passes_through_its_anchors():
    anchors = ("#102030", "#ff8800", "#00ff7f")
    assert ramp(anchors, 5)[::2] == list(anchors)


def test_a_scale_is_symmetric_and_clips():
    scale = Scale.fit([-4.0, 1.0, NAN, math.inf])
    assert (scale.limit, scale.signed) == (4.0, True)
    assert [scale.step(value) for value in (-9, -4, -2, 0, 2, 4, math.inf)] == [
        -8, -8, -4, 0, 4, 8, 8,
    ]  # fmt: skip
    assert Scale.fit([0.0, 2.0]) == Scale(2.0, signed=False)
    assert scale.css(NAN) == "xc-nan"
    with pytest.raises(ValueError, match="finite limit"):
        Scale(math.nan)


# tokens


def test_tokens_hold_their_numbers_and_their_sign():
    html = token_heatmap(["a", " b", "c", "d"], [0.5, -1.0, 0.0, NAN], title="t")
    spans = [span for span in Elements(html).named("span") if "data-token" in span]
    assert [float(span["data-value"] or "") for span in spans[:3]] == [0.5, -1.0, 0.0]
    signs = [(span["class"] or "").split()[2:] for span in spans]
    assert signs == [["pos"], ["neg"], [], ["nan"]]
    assert spans[1]["title"] == f"token 1, ' b': {MINUS}1"
    assert "not a number" in (spans[3]["title"] or "")


def test_white_space_is_marked_and_survives_copying():
    elements = Elements(token_heatmap(["if", "\n", "  x y", "\t", "", "z"], [1.0] * 6, title="t"))
    marks = [mark["class"] for mark in elements.named("i")]
    assert marks == ["nl", "sp", "sp", "tab", "none"]
    assert len(elements.named("br")) == 1
    assert "  x y" in elements.text


def test_tokens_and_scores_must_match():
    with pytest.raises(ValueError, match="2 tokens need as many scores, got 1"):
        token_heatmap(["a", "b"], [1.0], title="t")
    with pytest.raises(ValueError, match="at least one token"):
        token_heatmap([], [], title="t")


# table


def test_a_table_has_scopes_and_aligned_numbers():
    rows = [["dense", 17.4312, "0.97 [0.95, 0.99]", None], ["cut", -0.5, "5 %", NAN]]
    html = table(["model", "perplexity", "accuracy", "toxic"], rows, caption="c")
    elements = Elements(html)
    assert [head["scope"] for head in elements.named("th")] == ["col"] * 4 + ["row"] * 2
    assert all(cell["class"] == "num" for cell in elements.named("td"))
    assert ">17.43<" in html
    assert f">{MINUS}0.50<" in html
    assert ">NaN<" in html
    assert "nan" not in html


@pytest.mark.parametrize("words", ["Llama 3", "2 of the heads", "a3.h5", "", "10.1.2", "1-2-3"])
def test_text_is_not_taken_for_a_number(words: str):
    assert Elements(table(["a", "b"], [["x", words]])).named("td") == [{}]


@pytest.mark.parametrize(
    "words", ["12", f"{MINUS}3.5 %", "1,536", "4.1e-05", "0.31 ± 0.02", "25/30", "0.3 (0.2 to 0.4)"]
)
def test_numbers_in_text_stand_at_the_right(words: str):
    assert Elements(table(["a", "b"], [["x", words]])).named("td") == [{"class": "num"}]


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells, there are 2 headers"):
        table(["a", "b"], [["x", 1], ["y"]])


# page


def test_hostile_words_stay_words():
    html = a_page()
    elements = Elements(html)
    tags = {tag for tag, _ in elements.tags}
    assert not tags & {"img", "script", "iframe", "object"}
    assert not any(name.startswith("on") for _, found in elements.tags for name in found)
    assert "onerror=" in elements.text
    assert not re.search("[\x00\x1b\u202e\ud800]", html)
    html.encode("utf-8")


def test_a_page_has_one_title_and_landmarks_and_leads_nowhere():
    html = a_page()
    elements = Elements(html)
    assert len(elements.named("h1")) == len(elements.named("main")) == 1
    assert len(elements.named("h2")) == len(elements.named("section")) == 4
    ids = [found["id"] for _, found in elements.tags if "id" in found]
    assert len(ids) == len(set(ids))
    assert {str(link["href"])[1:] for link in elements.named("a")} <= set(map(str, ids))
    assert elements.named("meta")[1]["content"] == POLICY
    assert "http" not in re.sub(r'http-equiv="|xmlns="http://www.w3.org/2000/svg"', "", html)
    assert "url(" not in html
    assert "@import" not in html


def test_a_small_page_needs_no_contents():
    elements = Elements(page("t", [Section("a", ""), Section("b", "")]))
    assert not elements.named("nav")
    assert not elements.named("footer")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path):
    path, old = tmp_path / "report.html", page("old ü", [])
    assert write_page(path, old) == path
    with pytest.raises(ExciseError, match="exists"):
        write_page(path, page("new", []))
    with pytest.raises(UnicodeEncodeError):
        write_page(path, "new \ud800", overwrite=True)
    assert path.read_text(encoding="utf-8") == old
    write_page(str(path), "new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_rename_leaves_no_draft(tmp_path: Path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ExciseError, match="taken holds nothing that excise knows"):
        write_page(tmp_path / "taken", "x", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


# text


@given(st.floats(-1e300, 1e300))
def test_a_printed_number_is_near_the_number(value: float):
    for digits in (3, 6):
        for zeros in (False, True):
            printed = float(number(value, digits, zeros=zeros).replace(MINUS, "-"))
            assert math.isclose(printed, value, rel_tol=10.0 ** (1 - digits))


def test_escape_leaves_other_scripts_alone():
    assert escape("naïve 日本 🙂 مرحبا") == "naïve 日本 🙂 مرحبا"
