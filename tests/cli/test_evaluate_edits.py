"""excise eval on corrected models: what found or chose the edits in them is known."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from excise.core.provenance import Seen
from excise.core.texts import text_hash
from excise.edits.apply import apply_edit, bind
from excise.edits.compose import compose
from excise.edits.edit import Edit
from excise.edits.seal import checksum


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
    """Return two edits, each with what found or chose it."""
    for name, text, edit in (
        ("one", FOUND, Edit(heads={(0, 1): 0.0})),
        ("two", CHOSEN, Edit(neurons={(1, 2): 0.0})),
    ):
        seen = Seen(frozenset([text_hash(text)]))
        bind(edit, tiny_folder("opt"), seen=seen).save_pretrained(tmp_path / name)
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
    assert {kept.read_bytes() for kept in parts.glob("*/seen.json")} == {
        (edit / "seen.json").read_bytes() for edit in edits
    }
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
    assert held_out(excise("eval", tmp_path / "base", *measured(CHOSEN))) == "unknown"


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


def resealed(edit: Path, **changes: Any) -> None:
    """Change an edit's config as somebody would who knows how its checksum is made."""
    config = json.loads((edit / "config.json").read_text())
    config = {name: value for name, value in {**config, **changes}.items() if value is not None}
    tensors, readme = (edit / "edit.safetensors").read_bytes(), (edit / "README.md").read_text()
    config["checksum"] = checksum(config, tensors, readme)
    (edit / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def test_an_edit_from_python_keeps_what_it_has_seen(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    """The audit's H3 (a): nothing beside the edit needs to be read or handed on by the caller."""
    for name, given in (("edit", Edit.from_pretrained(edits[0])), ("folder", edits[0])):
        apply_edit(tiny_folder("opt"), given, tmp_path / name)
        assert held_out(excise("eval", tmp_path / name, *measured(FOUND))) == "error"
        assert held_out(excise("eval", tmp_path / name, *measured(FRESH))) == "pass"


@pytest.mark.parametrize("content", ["{", '{"prompt_hashes": []}', '{"prompt_hashes": "none"}', ""])
def test_what_was_seen_is_under_the_seal(
    content: str, excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any,
    edits: tuple[Path, Path],
):  # fmt: skip
    base, model, edit = tiny_folder("opt"), tmp_path / "model", tmp_path / "edit"
    apply_edit(base, edits[1], model)
    shutil.copytree(edits[1], edit)
    (inside,) = model.glob("excise-edits/*/seen.json")
    for file in (edit / "seen.json", inside):
        file.write_text(content) if content else file.unlink()
    word = "was changed" if content else "lacks its seen.json"
    for command in (
        ("show", edit), ("apply", base, edit, "-o", tmp_path / "other"), ("verify", model),
        ("verify", model, edits[1]), ("revert", model, "-o", tmp_path / "back"),
        ("eval", model, *measured(CHOSEN)),
        ("eval", base, *measured(CHOSEN), "--attribution", edit),
    ):  # fmt: skip
        result = excise(*command)
        assert result.exit_code == 1, command
        assert word in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("listed", "why"),
    [
        ([], "does not say which texts"),
        ("unknown", "does not say which texts"),
        (None, "does not say which texts"),
        (["0123456789abcdef"], "of an older excise"),
        ([text_hash(CHOSEN), "unknown"], "does not know all texts"),
    ],
)
def test_no_list_or_half_a_one_is_unknown_and_unknown_never_passes(
    listed: Any, why: str, excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any,
    edits: tuple[Path, Path],
):  # fmt: skip
    edit = Edit.from_pretrained(edits[1])
    files = {"seen.json": json.dumps({"prompt_hashes": listed}).encode()} if listed else {}
    apply_edit(tiny_folder("opt"), replace(edit, files=files), tmp_path / "model")
    result = excise("eval", tmp_path / "model", *measured(FRESH))
    checks = json.loads(result.stdout)["gates"][0]["checks"]
    (check,) = (check for check in checks if check["name"] == "held_out")
    assert (result.exit_code, check["status"], why in check["detail"]) == (3, "unknown", True)
    assert "--attribution" in check["detail"]
    (tmp_path / "policy.yaml").write_text("min_samples: 2\ntoxicity: {max: 1}")
    result = excise("eval", tmp_path / "model", *measured(FRESH))  # nobody asks, nothing is claimed
    assert "held_out" not in result.stdout


def test_an_edit_of_an_older_excise_says_what_to_do(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    old = tmp_path / "old"
    shutil.copytree(edits[1], old)
    resealed(old, files=None, recipe={"prompt_hashes": ["0123456789abcdef"] * 300})
    done = excise("apply", tiny_folder("opt"), old, "-o", tmp_path / "model")
    assert done.exit_code == 0
    assert "does not say which texts it was made with: make it again" in done.stderr
    assert held_out(excise("eval", tmp_path / "model", *measured(FRESH))) == "unknown"
    options = (*measured(CHOSEN), "--attribution", old)
    said = excise("eval", tiny_folder("opt"), *options)
    assert (said.exit_code, "an older excise, which sealed no list" in said.stderr) == (1, True)
    named = tmp_path / "named.txt"
    named.write_text(CHOSEN + "\n")
    for prompt, status in ((CHOSEN, "error"), (FRESH, "pass")):
        options = (*measured(prompt), "--attribution", named)
        assert held_out(excise("eval", tmp_path / "model", *options)) == status


def test_nearly_the_same_text_is_known_again(
    excise: Run, tiny_folder: Folder, tmp_path: Path, measured: Any, edits: tuple[Path, Path]
):
    apply_edit(tiny_folder("opt"), edits[0], tmp_path / "model")
    for prompt in (f"{FOUND}.", f"{FOUND[:7]}\u200b{FOUND[7:]}", f"{FOUND} there", f"now, {FOUND}"):
        assert held_out(excise("eval", tmp_path / "model", *measured(prompt))) == "error", prompt
    assert held_out(excise("eval", tmp_path / "model", *measured("the cat saw one book"))) == "pass"


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
