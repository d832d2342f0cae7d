"""A circuit to look at, and Chromium driven through its debugging pipe: no package, no network."""

import base64
import fcntl
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from excise.viz.circuit.data import (
    CircuitPicture,
    CurvePoint,
    EdgeRow,
    Example,
    Level,
    Metric,
    Node,
)
from excise.viz.text import MINUS


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WORDS = "When Mary and John went to the store , John gave a drink to"
PROMPT = [word if word in ("When", ",") else f" {word}" for word in WORDS.split()]


def build_picture(
    layers: int = 4, heads: int = 6, groups: int = 2, kept: int = 30, level: Level = "edges",
    intervals: bool = True, **changes: Any,
) -> CircuitPicture:  # fmt: skip
    """An invented circuit over all nodes and edges of a decoder; `kept` strongest are in it."""
    rng = random.Random(layers * 1000 + heads)
    ids: list[tuple[Any, int, int]] = [("embed", 0, 0)]
    ids += [("head" if u < heads else "mlp", layer, u % (heads + 1) if u < heads else 0)
            for layer in range(layers) for u in range(heads + 1)]  # fmt: skip
    ids.append(("logits", layers, 0))

    def score(layer: float) -> float:
        late = 0.25 + layer / layers
        return late * rng.choice((1, 1, -1)) * rng.lognormvariate(-4, 1.5)

    def ends(value: float) -> tuple[float | None, float | None]:
        return (value - 0.2 * abs(value), value + 0.3 * abs(value)) if intervals else (None, None)

    rendered = {"embed": "input", "logits": "logits", "head": "a{}.h{}", "mlp": "m{}"}
    values = [score(layer) if kind in ("head", "mlp") else 0.0 for kind, layer, _ in ids]
    edges: list[tuple[int, int, str, float]] = []
    for target, (kind, layer, unit) in enumerate(ids):
        if kind == "embed":
            continue
        size = heads // groups
        inputs = ("q", "k", "v") if unit % size == 0 else ("q",)
        for reads in inputs if kind == "head" else (kind,):
            for source, (writer, depth, _) in enumerate(ids[:-1]):
                before = depth < layer or writer == "embed"
                if before or (kind == "mlp" and writer == "head" and depth == layer):
                    weight = (abs(values[source]) + 0.004) * (abs(values[target]) + 0.01) * 9
                    edges.append((source, target, reads, score(layer) * weight))
    if level == "nodes":
        order = sorted(range(len(ids)), key=lambda at: -abs(values[at]))[:kept]
        inside = set(order) | {0, len(ids) - 1}
        edges = [e for e in edges if e[0] in inside and e[1] in inside]
        held = set(range(len(edges)))
    else:
        held = set(sorted(range(len(edges)), key=lambda at: -abs(edges[at][3]))[:kept])
        inside = {at for e in held for at in edges[e][:2]} | {0, len(ids) - 1}
    nodes = [
        Node(rendered[kind].format(layer, unit), kind, layer, unit, value, *ends(value),
             at in inside)
        for at, ((kind, layer, unit), value) in enumerate(zip(ids, values, strict=True))
    ]  # fmt: skip
    rows = [EdgeRow(*edge, *ends(edge[3]), at in held) for at, edge in enumerate(edges)]
    total = len(edges) if level == "edges" else len(ids) - 2
    sizes = sorted(
        {max(round(total * share), 1) for share in (0.01, 0.03, 0.08, 0.15, 0.3, 0.6, 1)}
    )
    curve = []
    for size in sizes:
        value = 1 - math.exp(-6 * (size / total) ** 0.55) + 0.06 * math.sin(size)
        curve.append(CurvePoint(size, value, value - 0.07, value + 0.05, (size / total) ** 3))
    arguments: dict[str, Any] = {
        "title": "Who gets the drink? Indirect objects in SmolLM2-135M",
        "subtitle": f"{kept} of {total:,} {level} carry 91 % of the preference for the right name; "
        "a random circuit of this size carries nothing.",
        "footer": "excise circuit smollm2 --task ioi --seed 0\n64 prompts for the scores, 64 with "
        "other names for the test.",
        "layers": layers, "heads": heads, "kv_groups": groups, "level": level,
        "nodes": nodes, "edges": rows, "curve": curve, "size": kept,
        "metrics": [
            Metric("Faithfulness", 0.912, 0.874, 0.941, "share of the logit difference kept"),
            Metric("Without the circuit", 0.08, 0.03, 0.12, "completeness: close to 0 is good"),
            Metric("Random circuit", 0.004, -0.02, 0.02, "same size, 20 draws"),
            Metric("Accuracy", 0.97, 0.92, 1.0, "whole model: 1.00"),
            Metric("Stability", 0.78, 0.71, 0.84, "Jaccard over 100 resamples"),
        ],
        "examples": [attention(PROMPT, [n for n in nodes if n.kept and n.kind == "head"], rng),
                     attention(PROMPT[:9], [n for n in nodes if n.kept and n.kind == "head"], rng)],
        "warnings": [], "answer": " Mary",
    }  # fmt: skip
    return CircuitPicture(**{**arguments, **changes})


def attention(tokens: list[str], heads: list[Node], rng: random.Random) -> Example:
    """Invented attention: much on the first token, some on a few others."""
    found = {}
    for head in heads:
        look = [rng.random() ** 6 for _ in tokens]
        rows = []
        for query in range(len(tokens)):
            weights = [0.8 + look[0], *(3 * one for one in look[1 : query + 1])]
            rows.append([weight / sum(weights) for weight in weights])
        found[head.name] = rows
    return Example(tokens, found)


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., CircuitPicture]:
    return build_picture


class Chromium:
    """A browser with one tab, driven by the Chrome DevTools protocol over descriptors 3 and 4."""

    FLAGS = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", "--remote-debugging-pipe",
    )  # fmt: skip

    def __init__(self, folder: Path):
        assert BROWSER
        self.folder = folder
        ours, theirs = [], []
        for ends in (os.pipe(), os.pipe()[::-1]):  # what we write; what we read
            ours.append(ends[1])
            theirs.append(fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 10))
            os.close(ends[0])
        (self.write, self.read), (commands, answers) = ours, theirs
        sink = os.open(os.devnull, os.O_RDWR)
        self.process = os.posix_spawn(
            BROWSER, [BROWSER, *self.FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2),
                          (os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, answers, 4)],
        )  # fmt: skip
        for end in (commands, answers, sink):
            os.close(end)
        self.buffer, self.calls, self.session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer; events on the way are kept."""
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self.calls:
                assert "error" not in found, (method, found)
                return found["result"]
            self.events.append(found)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            more = os.read(self.read, 1 << 16)
            assert more, "the browser ended"
            self.buffer += more
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path: Path, wide: int = 1280, tall: int = 1000, scheme: str = "light") -> None:
        """Loads a file and waits until it is drawn; events of earlier pages are forgotten."""
        self.call("Emulation.setDeviceMetricsOverride", width=wide, height=tall,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.scheme(scheme)
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.settle()

    def scheme(self, name: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True,
                          awaitPromise=True)  # fmt: skip
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def settle(self) -> None:
        """Waits for two frames: what was asked for is drawn."""
        frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.run(f"{frame}.then(() => 0)")

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window, scrolled into sight."""
        self.run(f"document.querySelector({json.dumps(selector)})"
                 ".scrollIntoView({block: 'center', behavior: 'instant'}); 0")  # fmt: skip
        self.settle()
        return tuple(self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "const b = e.getBoundingClientRect();"
            "return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        ))  # fmt: skip

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def hover(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def number(self, expression: str) -> float:
        """A printed number."""
        return float(self.run(expression).replace(MINUS, "-"))

    def exported(self, kind: str) -> bytes:
        """What a button of the circuit page saves."""
        path = self.folder / f"circuit.{kind}"
        path.unlink(missing_ok=True)
        self.click(f"[data-export={kind}]")
        for _ in range(100):
            if path.exists():
                return path.read_bytes()
            self.settle()
            time.sleep(0.05)
        raise AssertionError(f"no {path.name} was saved")

    def painted(self) -> int:
        """How many pixels of the canvas are not empty."""
        return self.run(
            "(() => { const from = document.querySelector('canvas');"
            "const c = new OffscreenCanvas(from.width, from.height);"
            "const context = c.getContext('2d', {willReadFrequently: true});"
            "context.drawImage(from, 0, 0); let n = 0;"
            "const d = context.getImageData(0, 0, c.width, c.height).data;"
            "for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
        )

    def press(self, *keys: str) -> None:
        """Keys by name, such as `ArrowLeft` and `Enter`."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13,
                 "Escape": 27, "Tab": 9, "Home": 36, "End": 35}  # fmt: skip
        for key in keys:
            parts = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            down = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
            self.call("Input.dispatchKeyEvent", **parts, **down)
            self.call("Input.dispatchKeyEvent", **parts, type="keyUp")
        self.settle()

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.settle()

    def screenshot(self, path: Path, whole: bool = False) -> Path:
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def complaints(self) -> list[str]:
        """Console errors, exceptions, policy violations, and requests that leave the page."""
        bad = []
        for event in self.events:
            method, params = event.get("method", ""), event.get("params", {})
            if method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                bad.append(json.dumps(params)[:400])
            elif method == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:")):
                    bad.append(url)
        return bad

    def close(self) -> None:
        self.session = None
        self.call("Browser.close")
        os.close(self.write)
        os.close(self.read)
        os.waitpid(self.process, 0)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    browser = Chromium(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
