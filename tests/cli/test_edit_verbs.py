"""apply, verify, revert, diff and show on edits: exit codes, files, JSON keys, one-line errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from excise.cli import apply, diff, revert, show, verify
from excise.core.errors import ExciseError
from excise.edits.apply import bind
from excise.edits.edit import Edit


Folder = Callable[[str], Path]

both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])


def run(verb: click.Command, *arguments: Any) -> Result:
    return CliRunner().invoke(verb, list(map(str, arguments)), catch_exceptions=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


@pytest.fixture
def two(tiny_folder: Folder, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return `two(kind)`, the folders of two edits of a tiny model."""

    def made(kind: str) -> tuple[Path, Path]:
        base = tiny_folder(kind)
        stack = "model.decoder.layers" if kind == "opt" else "model.layers"
        value = f"{stack}.1.self_attn.v_proj.weight"
        one = Edit(heads={(0, 1): 0.0, (1, 2): 0.5}, neurons={(0, 3): 0.0})
        other = Edit(
            neurons={(0, 3): 0.0, (1, 5): -0.5},
            weights={value: (torch.tensor([7]), torch.tensor([0.0]))},
        )
        bind(one, base, kind, {"method": "x"}, {"drop": 0.4}).save_pretrained(tmp_path / "one")
        bind(other, base, kind).save_pretrained(tmp_path / "other")
        return tmp_path / "one", tmp_path / "other"

    return made


@both
def test_there_and_back(two: Any, tiny_folder: Folder, tmp_path: Path, kind: str):
    base, (one, other) = tiny_folder(kind), two(kind)
    digests = [Edit.from_pretrained(path).digest for path in (one, other)]
    out, back = tmp_path / "out", tmp_path / "back"
    result = run(apply.command, base, one, other, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["output"] == str(out)
    assert printed["edits"] == digests
    assert len(printed["tensors"]) == 5
    assert printed["left_out"] == []

    for edit in (one, other):
        result = run(verify.command, out, edit)
        assert result.exit_code == 0, result.stderr
        assert digests[0][:12] in result.stdout
    printed = json.loads(run(verify.command, out, "--json").stdout)
    assert printed["holds"] is True
    assert printed["edits"] == digests

    result = run(revert.command, out, one, "-o", back)
    assert result.exit_code == 0
    assert f"edit {digests[1][:12]}" in result.stdout
    missing = run(verify.command, back, one)
    assert missing.exit_code == 3
    assert missing.stdout == ""
    assert missing.stderr.startswith(f"excise: {back} does not verify: edit {digests[0][:12]}")
    result = run(verify.command, back, one, "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["holds"] is False

    result = run(revert.command, back, digests[1][:8], "-o", back, "--overwrite")
    assert "this is the base" in result.stdout
    assert contents(back) == contents(base)
    result = run(revert.command, out, "--all", "-o", out, "--overwrite", "--json")
    assert json.loads(result.stdout)["edits"] == []
    assert contents(out) == contents(base)


@both
def test_show(two: Any, kind: str):
    one, other = two(kind)
    text = run(show.command, one).stdout
    for part in ("2 heads, 1 neurons; 2 x 0, 1 x 0.5", 'recipe: {"method": "x"}', '{"drop": 0.4}',
                 "layer 0  1      1", "head 2 of layer 1    0.5"):  # fmt: skip
        assert part in text
    assert "and 1 more" in run(show.command, one, "--top", 2).stdout
    printed = json.loads(run(show.command, other, "--json").stdout)
    assert printed["neurons"] == [[0, 3, 0.0], [1, 5, -0.5]]
    assert list(printed["weights"].values()) == [1]
    assert printed["base"]["name"] == kind
    assert printed["components"] == 3
    with pytest.raises(ExciseError, match="holds edit, which --html cannot be given for"):
        run(show.command, one, "--html", "page.html")


def test_diff(two: Any, tiny_folder: Folder):
    one, other = two("opt")
    text = run(diff.command, one, other).stdout
    assert "head 1 of layer 0" in text
    assert "neuron 3 of layer 0" not in text  # in both, with one factor
    assert "lines more" in run(diff.command, one, other, "--top", 3).stdout
    printed = json.loads(run(diff.command, one, other, "--json").stdout)
    assert printed["only_a"] == [["head", 0, 1, 0.0], ["head", 1, 2, 0.5]]
    assert printed["only_b"][0] == ["neuron", 1, 5, -0.5]
    assert printed["changed"] == []
    assert printed["same_base"] is True
    assert "they do the same" in run(diff.command, one, one).stdout
    with pytest.raises(ExciseError, match=r"is edit and .* is a model: give two of circuit, edit"):
        run(diff.command, one, tiny_folder("opt"))


def test_refusals(two: Any, tiny_folder: Folder, tmp_path: Path):
    base, (one, other) = tiny_folder("llama-gqa"), two("llama-gqa")
    out = tmp_path / "out"
    wrong = (
        (apply.command, [base, one], "give -o"),
        (revert.command, [base], "give -o"),
        (apply.command, [tiny_folder("opt"), one, "-o", out], "is not the checkpoint of edit"),
        (apply.command, [base, base, "-o", out], "edit is needed"),
        (apply.command, [base, tmp_path / "none", "-o", out], "no folder at"),
        (apply.command, [tmp_path / "none", one, "-o", out], "no folder at"),
        (apply.command, ["smolm2", one, "-o", out], "did you mean 'smollm2'"),
        (apply.command, [base, one, "-o", other], "exists"),
        (apply.command, [base, one, one, "-o", out], "there twice"),
        (revert.command, [base, "-o", out], "has no edits"),
        (verify.command, [base], "give the edit"),
    )
    for verb, arguments, message in wrong:
        with pytest.raises(ExciseError, match=message) as error:
            run(verb, *arguments)
        assert "\n" not in str(error.value)
    assert not out.exists()
    run(apply.command, base, one, "-o", out)
    for arguments, message in ((["0000"], "0 edits of"), (["x", "--all"], "takes out every")):
        with pytest.raises(ExciseError, match=message):
            run(revert.command, out, *arguments, "-o", tmp_path / "back")
    assert run(apply.command, base, "-o", out).exit_code == 2


def test_weights_left_out_are_named(two: Any, tiny_folder: Folder, tmp_path: Path):
    one, _ = two("opt")
    base = tmp_path / "base"
    base.mkdir()
    for name, content in contents(tiny_folder("opt")).items():
        (base / name).write_bytes(content)
    (base / "pytorch_model.bin").write_text("old")
    result = run(apply.command, base, one, "-o", tmp_path / "out")
    assert "pytorch_model.bin" in result.stderr
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()


def test_a_hub_id_is_the_folder_of_its_snapshot(
    two: Any, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def snapshot(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(fnmatch(file, p) for p in allow_patterns for file in ("a.bin", "a.pth"))
        assert any(fnmatch("excise-edits/undo.safetensors", p) for p in allow_patterns)
        return str(tiny_folder("opt"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    result = run(apply.command, "org/opt", two("opt")[0], "--revision", "v1", "-o", tmp_path / "o")
    assert result.exit_code == 0
    assert asked == [("org/opt", "v1")]


def test_help_needs_no_torch():
    code = (
        "import sys; from excise.cli import apply, diff, revert, show, verify\n"
        "for verb in (apply, diff, revert, show, verify):\n"
        "    verb.command(['--help'], standalone_mode=False)\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"
    assert done.stdout.count("Usage:") == 5
