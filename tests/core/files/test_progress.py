"""What is kept of a run goes on with that run, and with no other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.files.progress import Progress, digests


ASKED = {"model": "m", "seed": 0, "data": ["a", None], "scale": 0.5}


def make(progress: Progress, asked: dict[str, Any], value: float | None) -> float:
    """Return what was kept, or keep a value."""

    def made() -> float:
        assert value is not None, "this was kept"
        return value

    return progress.part(
        "one", asked, made, lambda v: ({"as": "x"}, {"x": torch.tensor(v)}),
        lambda config, tensors: float(tensors[config["as"]]),
    )  # fmt: skip


def test_a_part_is_made_once(tmp_path: Path):
    progress = Progress(tmp_path / ".out.progress")
    assert make(progress, ASKED, 2.0) == make(progress, dict(reversed(ASKED.items())), None) == 2.0
    progress.keep("one", ASKED, {"as": "x"}, {"x": torch.tensor(3.0)})
    assert make(progress, ASKED, None) == 3.0
    progress.forget()
    assert list(tmp_path.iterdir()) == []
    assert make(progress, ASKED, 4.0) == 4.0


def test_without_a_folder_nothing_is_kept():
    progress = Progress(None)
    assert [make(progress, ASKED, value) for value in (1.0, 2.0)] == [1.0, 2.0]
    progress.forget()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"seed": 1}, "seed"),
        ({"seed": 0.5, "scale": 0}, "scale, seed"),
        ({"data": ["a", 0]}, "data"),
        ({"more": None}, "more"),
    ],
)
def test_another_run_is_refused_and_says_what_differs(
    tmp_path: Path, change: dict[str, Any], differs: str
):
    progress = Progress(tmp_path / "p")
    make(progress, ASKED, 1.0)
    with pytest.raises(ExciseError, match=f"another run, with other {differs}: repeat"):
        make(progress, {**ASKED, **change}, None)
    less = {name: value for name, value in ASKED.items() if name != "scale"}
    with pytest.raises(ExciseError, match="with other scale: repeat"):
        make(progress, less, None)


def test_a_part_that_does_not_say_what_it_is_of_is_refused(tmp_path: Path):
    progress = Progress(tmp_path / "p")
    make(progress, ASKED, 1.0)
    config = tmp_path / "p" / "one" / "config.json"
    config.write_text(config.read_text().replace('"asked"', '"key"'))
    with pytest.raises(ExciseError, match="does not say which run"):
        make(progress, ASKED, None)


def test_digests_tell_values_apart():
    values = [0, 1, None, "", "0", [], [0], {}, {"a": 0}, 0.5, True]
    assert len({digests({"x": value})["x"] for value in values}) == len(values)
