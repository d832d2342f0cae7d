"""excise eval on corrected models: what found or chose the edits in them is known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from excise.core.data import text_hash
from excise.correction.apply import bind
from excise.correction.compose import compose
from excise.correction.edit import Edit


Run = Callable[..., Result]
Folder = Callable[[str], Path]

FOUND, CHOSEN, FRESH = "the cat sat on mat", "and then it was not there", "one book"
OTHERS = [f"{word} the {noun}" for word in ("and", "one", "two") for noun in ("cat", "mat", "book")]


@pytest.fixture
def measured(tmp_path: Path) -> Callable[[str], tuple[Any, ...]]:
    """Return `measured(prompt)`, options that measure a prompt and others under a gate."""
    (tmp_path / "policy.yaml").write_text(
        "min_samples: 2\nrare: 100 %\nheld_out: required\ntoxicity: {max: 1}"
    )
    (tmp_path / "list.txt").write_text("cat\n")

    def options(prompt: str) -> tuple[Any, ...]:
        (tmp_path / "prompts.txt").write_text("\n".join([prompt, *OTHERS]))
        return ("--toxicity", tmp_path / "prompts.txt", "--scorer",
                f"words:{tmp_path / 'list.txt'}", "--completions", 1, "--new-tokens", 2,
                "--gate", tmp_path / "policy.yaml", "--json")  # fmt: skip

    return options


def held_out(result: Result) -> str:
    checks = json.loads(result.stdout)["gates"][0]["checks"]
    return next(check["status"] for check in checks if check["name"] == "held_out")


@pytest.fixture
def edits(tiny_folder: Folder, tmp_path: Path) -> tuple[Path, Path]:
    """Return two edits: the config of one tells what found it, a file beside the other more."""
    recipe = {"prompt_hashes": [text_hash(FOUND)]}
    one = bind(Edit(heads={(0, 1): 0.0}), tiny_folder("opt"), recipe=recipe)
    one.save_pretrained(tmp_path / "one")
    bind(Edit(neurons={(1, 2): 0.0}), tiny_folder("opt")).save_pretrained(tmp_path / "two")
    seen = {"prompt_hashes": [text_hash(CHOSEN)]}
    (tmp_path / "two" / "seen.json").write_text(json.dumps(seen) + "\n")
    return tmp_path / "one", tmp_path / "two"


def test_a_corrected_model_knows_what_made_its_edits(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    one, two = edits
    first, both, back = (tmp_path / name for name in ("first", "both", "back"))
    assert excise("apply", tiny_folder("opt"), two, "-o", first).exit_code == 0
    assert excise("apply", first, one, "-o", both).exit_code == 0
    assert excise("verify", both).exit_code == 0
    parts = both / "excise-edits"
    (kept,) = parts.glob("*/seen.json")
    assert kept.read_bytes() == (two / "seen.json").read_bytes()
    for prompt in (FOUND, CHOSEN):
        result = excise("eval", both, *measured(f" {prompt.upper()} "))
        assert (result.exit_code, held_out(result)) == (3, "error"), prompt
        assert f"warning: 1 texts of toxicity chose the edit of {both}" in result.stderr
    result = excise("eval", both, *measured(FRESH))
    assert (result.exit_code, held_out(result)) == (0, "pass")

    assert excise("revert", both, one, "-o", back).exit_code == 0  # the other one stays
    assert held_out(excise("eval", back, *measured(CHOSEN))) == "error"
    assert held_out(excise("eval", back, *measured(FOUND))) == "pass"
    assert excise("revert", back, "-o", tmp_path / "base").exit_code == 0
    assert not (tmp_path / "base" / "excise-edits").exists()
    assert held_out(excise("eval", tmp_path / "base", *measured(CHOSEN))) == "inconclusive"


def test_an_edit_can_be_named(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    for prompt, edit, status in (
        (FOUND, edits[0], "error"),
        (CHOSEN, edits[1], "error"),
        (CHOSEN, edits[0], "pass"),
    ):
        options = (*measured(prompt), "--attribution", edit)
        assert held_out(excise("eval", tiny_folder("opt"), *options)) == status
    whole = compose([Edit.from_pretrained(edit) for edit in edits])
    whole.save_pretrained(tmp_path / "whole")
    options = (*measured(FOUND), "--attribution", tmp_path / "whole")
    assert held_out(excise("eval", tiny_folder("opt"), *options)) == "error"


@pytest.mark.parametrize("content", ["{", '{"prompt_hashes": 7}', '{"prompt_hashes": [[]]}'])
def test_a_damaged_list_is_no_empty_list(
    content: str, excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any,
    edits: tuple[Path, Path],
):  # fmt: skip
    model, edit = tmp_path / "model", tmp_path / "edit"
    shutil.copytree(edits[1], edit)
    (edit / "seen.json").write_text(content)
    assert excise("apply", tiny_folder("opt"), edit, "-o", model).exit_code == 0
    result = excise("eval", model, *measured(FRESH))
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr.splitlines()[-1]


def test_a_pruned_corrected_model_knows_it_too(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    corrected, pruned = tmp_path / "corrected", tmp_path / "pruned"
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and then it was not there " * 20)
    assert excise("apply", tiny_folder("opt"), edits[1], "-o", corrected).exit_code == 0
    done = excise("prune", corrected, "--sparsity", 0.3, "--criterion", "magnitude",
                  "--calibration", text, "--samples", 2, "--length", 16, "-o", pruned)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert held_out(excise("eval", pruned, *measured(CHOSEN))) == "error"
    assert held_out(excise("eval", pruned, *measured(FRESH))) == "pass"
