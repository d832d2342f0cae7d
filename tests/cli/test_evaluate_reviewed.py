"""What a reviewer found that could pass or be lost, and no longer can."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result


Run = Callable[..., Result]
Folder = Callable[[str], Path]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text("min_samples: 2\nrare: 100 %\nperplexity: {max: 1e9}\n")
    return path


def test_a_window_knows_the_lines_it_cuts_through(
    excise: Run, tiny_folder: Folder, tmp_path: Path, policy: Path, text_file: Path
):
    """A text of one line, longer than every window."""
    relevance, model = tmp_path / "relevance", tiny_folder("llama-gqa")
    source = ("--text", text_file, "--samples", 2, "--length", 16, "-o", relevance)
    assert excise("score", model, *source).exit_code == 0
    measured = ("--perplexity", text_file, "--window", 32, "--limit", 4, "--gate", policy)
    found = excise("eval", model, *measured, "--attribution", relevance)
    assert found.exit_code == 3
    assert "measured again (1 of 1 of perplexity)" in found.stdout


def test_an_edit_of_an_edit_remembers_both(
    excise: Run, tiny_folder: Folder, tmp_path: Path, text_file: Path
):
    first, second = tmp_path / "first", tmp_path / "second"
    source = ("--text", text_file, "--samples", 2, "--length", 16)
    for model, out, data in (
        (tiny_folder("opt"), first, source),
        (first, second, ("--task", "ioi")),
    ):
        relevance = tmp_path / f"{out.name}-relevance"
        assert excise("score", model, *data, "--samples", 4, "-o", relevance).exit_code == 0
        cut = ("--relevance", relevance, "--components", "heads", "--sparsity", 0.2, "-o", out)
        assert excise("prune", model, *cut, "--zero").exit_code == 0
    data = ("--perplexity", text_file, "--window", 32, "--task", "ioi", "--split", "train")
    found = excise("eval", second, *data)
    for outcome in ("perplexity", "tasks.ioi"):
        assert f"texts of {outcome} chose the edit of {second}" in found.stderr


def test_not_knowing_can_be_refused(
    excise: Run, tiny_folder: Folder, policy: Path, text_file: Path, tmp_path: Path
):
    measured = ("eval", tiny_folder("opt"), "--perplexity", text_file, "--window", 32)
    assert excise(*measured, "--gate", policy).exit_code == 0
    policy.write_text("held_out: required\n" + policy.read_text())
    unknown = excise(*measured, "--gate", policy)
    assert (unknown.exit_code, "not met: held_out" in unknown.stderr) == (3, True)
    (tmp_path / "others.txt").write_text("A prompt that nobody measures here.")
    known = excise(*measured, "--gate", policy, "--attribution", tmp_path / "others.txt")
    assert known.exit_code == 0


def test_a_policy_can_pin_the_protocol(
    excise: Run, tiny_folder: Folder, policy: Path, text_file: Path
):
    policy.write_text("min_samples: 2\nrare: 100 %\nperplexity: {max: 1e9, protocol: window=64}\n")
    measured = ("eval", tiny_folder("opt"), "--perplexity", text_file, "--gate", policy)
    assert excise(*measured, "--window", 64).exit_code == 0
    other = excise(*measured, "--window", 32)
    assert (other.exit_code, "not 'window=64'" in other.stdout) == (3, True)


def test_a_model_is_never_overwritten_by_a_report(
    excise: Run, tiny_folder: Folder, tmp_path: Path, text_file: Path
):
    model, report = tiny_folder("opt"), tmp_path / "report"
    measured = ("eval", model, "--perplexity", text_file, "--window", 32, "--overwrite")
    found = excise(*measured, "-o", model)
    assert (found.exit_code, "holds model and is not overwritten" in found.stderr) == (1, True)
    assert (model / "model.safetensors").is_file()
    for _ in range(2):
        assert excise(*measured, "-o", report).exit_code == 0


def test_a_changed_row_is_noticed(
    excise: Run, tiny_folder: Folder, text_file: Path, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path))
    measured = ("eval", tiny_folder("opt"), "--perplexity", text_file, "--window", 32)
    assert excise(*measured).exit_code == 0
    again = json.loads(excise(*measured, "--json").stdout)
    assert again["environment"]["rows_measured_before"] == again["perplexity"]["n"]
    (store,) = (tmp_path / "eval").glob("*.jsonl")
    head, first, *others = store.read_text().splitlines()
    row = json.loads(first)
    row["row"]["loss"] = 1.0
    store.write_text("\n".join([head, json.dumps(row), *others]) + "\n")
    found = excise(*measured)
    assert (found.exit_code, "is damaged" in found.stderr) == (1, True)


def test_json_in_a_text_file_is_refused(excise: Run, tiny_folder: Folder, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text('{"prompt": "The cat"}\n')
    words = tmp_path / "words.txt"
    words.write_text("cat\n")
    given = ("--toxicity", tmp_path / "prompts.txt", "--scorer", f"words:{words}")
    found = excise("eval", tiny_folder("opt"), *given)
    assert (found.exit_code, "line 1 begins like JSON: call the file .jsonl" in found.stderr) == (
        1,
        True,
    )
