"""A page as a browser shows it: headless Chromium, where there is one."""

import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from excise.viz.chart import Point, Series, line_chart
from excise.viz.heatmap import heatmap
from excise.viz.page import Section, page, write_page
from excise.viz.table import table
from excise.viz.tokens import token_heatmap


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars",
)  # fmt: skip
WIDTH, HEIGHT = 900, 700
VALUES = [[(row - column) / 7 for column in range(9)] for row in range(6)]
HOSTILE = "<img src=x onerror=\"document.body.innerHTML='owned'\">"
CURVE = Series(HOSTILE, [Point(0, 1, 0, 2), Point(1, 3, 2, 4)])

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = [
        Section("Heads", heatmap(VALUES, title="Relevance")),
        Section("Curve", line_chart([CURVE], title="Dose", x_label="x", y_label="y")),
        Section("Tokens", token_heatmap(["When", " Mary", HOSTILE], [0.1, 0.9, -0.5], title="t")),
        Section("Table", table(["model", "accuracy"], [["dense", 0.97]])),
    ]
    return write_page(tmp_path_factory.mktemp("page") / "report.html", page("Report", sections))


def chromium(profile: Path, report: Path, *flags: str) -> str:
    assert BROWSER
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", *flags, report.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def screenshot(folder: Path, report: Path, scheme: int) -> list[bytes]:
    path = folder / f"scheme{scheme}.png"
    chromium(
        folder / "profile", report, f"--screenshot={path}", f"--window-size={WIDTH},{HEIGHT}",
        f"--blink-settings=preferredColorScheme={scheme}",
    )  # fmt: skip
    return scanlines(path.read_bytes())


def scanlines(png: bytes) -> list[bytes]:
    """The still filtered lines of a PNG: equal lines of one colour are equal after the second."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert (width, height, depth) == (WIDTH, HEIGHT, 8)
    at, packed = 8, b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            packed += png[at + 8 : at + 8 + size]
        at += size + 12
    pixels = zlib.decompress(packed)
    stride = 1 + width * {2: 3, 6: 4}[kind]
    return [pixels[start : start + stride] for start in range(0, len(pixels), stride)]


def test_the_screenshot_shows_something_and_follows_the_scheme(tmp_path: Path, report: Path):
    dark, light = (screenshot(tmp_path, report, scheme) for scheme in (0, 1))
    for lines in (dark, light):
        assert len(lines) == HEIGHT
        assert len(set(lines)) > 100
    assert sum(dark[0][1:4]) < 3 * 60 < 3 * 200 < sum(light[0][1:4])


def test_the_browser_builds_every_cell_and_no_foreign_element(tmp_path: Path, report: Path):
    dom = chromium(tmp_path, report, "--dump-dom")
    tags: list[str] = []
    numbers: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
            tags.append(tag)
            if tag == "rect":
                numbers.extend(value or "" for name, value in attrs if name == "data-value")

    Reader().feed(dom)
    assert [float(number) for number in numbers] == [value for row in VALUES for value in row]
    assert not {"img", "script"} & set(tags)
    assert dom.count("data-x=") == 2
    assert tags.count("h1") == 1
    assert dom.count("data-token=") == 3
    assert '<td class="num">0.97</td>' in dom
