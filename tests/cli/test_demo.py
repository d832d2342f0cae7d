"""The demo, on tiny models: table, page, JSON, and a second run over the first."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from excise import Relevance


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_demo(
    kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path, excise: Callable[..., Any]
):
    out = tmp_path / "out"
    arguments = ["demo", "--model", str(tiny_folder(kind)), "--samples", "6", "-o", str(out)]
    done = excise(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["heads_cut"] for row in rows] == [0, 2, 2, 2, 2]
    assert len({row["text"]["value"] for row in rows}) > 1  # the cuts did something
    assert rows[0]["ioi"]["accuracy"]["n"] == 6
    page = (out / "demo.html").read_text()
    assert page.count("<svg") == 2
    assert "cut at random, draw 2" in page
    assert Relevance.from_pretrained(out / "relevance").config["n_samples"] == 6
    taken = excise(*arguments)
    assert (taken.exit_code, taken.stdout) == (1, "")
    assert "out exists" in taken.stderr
    again = excise(*arguments, "--overwrite")
    assert again.exit_code == 0
    assert again.stdout.splitlines()[0].startswith("model ")
