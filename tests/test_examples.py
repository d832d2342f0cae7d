"""The examples run as they stand, on tiny models of both families; only their size is reduced."""

import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import excise
import pytest
from excise.tasks.ioi import ioi_prompts


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

SMALLER: dict[str, dict[str, Any]] = {
    "prune_model": {"samples": 4, "length": 24},
    "evaluate_models": {"window": 16},
    "find_circuit": {"samples": 8, "controls": 1, "allow_failing": True},
    "correct_model": {"behaviour": None, "sizes": (1,), "factors": (0.0,), "windows": 8,
                      "window": 16, "controls": 2, "task_samples": 4, "min_samples": 5,
                      "budgets": {"perplexity": 0.9}},
}  # fmt: skip
"""What a random model of two layers is asked for, by the door: it has no behaviour of its own."""


TEXTS: dict[str, dict[str, Any]] = {
    "undesired": {"n": 60, "seed": 9},
    "general": {"n": 60, "seed": 3, "split": "validation"},
    "perplexity": {"n": 90, "seed": 4, "split": "test"},
}
"""How the texts of a correction are drawn."""


def _called(door: Callable[..., Any], smaller: dict[str, Any], *given: Any, **options: Any) -> Any:
    return door(*given, **{**options, **smaller})


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path,
    kind: str,
    tiny_folder: Callable[[str], Path],
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [str(path), str(tiny_folder(kind))])
    texts = {
        name: [f"{prompt.clean} ." for prompt in ioi_prompts(tiny_tokenizer, **how)]
        for name, how in TEXTS.items()
    }
    for name, options in SMALLER.items():
        more = texts if name == "correct_model" else {}
        smaller = partial(_called, getattr(excise, name), {**options, **more})
        monkeypatch.setattr(excise, name, smaller)
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert len(path.read_text().splitlines()) <= 15
    written = {"prune": "pruned/model.safetensors", "circuit": "ioi-circuit/circuit.html"}
    if path.stem in written:
        assert (tmp_path / written[path.stem]).is_file()


def test_there_is_an_example_of_each_use():
    assert {path.stem for path in EXAMPLES} == {"prune", "circuit", "correction"}
