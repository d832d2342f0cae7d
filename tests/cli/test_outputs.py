"""Every verb with -o: --overwrite replaces nothing of another kind, and nothing that is read."""

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from excise.circuits.circuit import Circuit
from excise.cli import options as shared
from excise.cli.main import group
from excise.core.files.output import check_output
from excise.edits.apply import bind
from excise.edits.edit import Edit


Folder = Callable[[str], Path]

VERBS = {
    "score {model} --prompts {prompts} -o": "relevance",
    "circuit {model} --prompts {prompts} -o": "circuit",
    "prune {model} --calibration {text} --sparsity 0.5 -o": "model",
    "prune {model} --calibration {text} --compare wanda --sparsity 0.5 -o": "pruning-table",
    "prune {model} --relevance {relevance} --components neurons --sparsity 0.5 -o": "model",
    "apply {model} {edit} -o": "model",
    "revert {model} {edit} -o": "model",
    "eval {model} --perplexity {text} -o": "evaluation",
    "correct {model} --undesired {text} --general {text} -o": "edit",
    "demo --model {model} -o": "demo",
    "show {relevance} --html": "page",
    "show {circuit} --html": "page",
    "show {circuit} --svg": "drawing",
    "show {circuit} --dot": "graph",
    "show {circuit} --eap-ig": "EAP-IG file",
}
"""Commands up to the name of the output, and what each writes."""

KINDS = ("relevance", "circuit", "edit", "evaluation", "pruning-table", "demo", "mask", "progress")


@pytest.fixture
def files(
    tmp_path: Path, tiny_folder: Folder, scored: Folder, prompts_file: Path, text_file: Path
) -> dict[str, str]:
    """Return something of every kind, by name; copies, since they are what might get lost."""
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"kind": kind, "schema": 1}))
    for name in ("relevance", "edit"):
        shutil.rmtree(tmp_path / name)
    shutil.copytree(tiny_folder("opt"), tmp_path / "model")
    shutil.copytree(scored("opt"), tmp_path / "relevance")
    bind(Edit(heads={(0, 1): 0.0}), tmp_path / "model").save_pretrained(tmp_path / "edit")
    shutil.copy(prompts_file, tmp_path / "prompts")
    shutil.copy(text_file, tmp_path / "text")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    return {path.name: str(path) for path in tmp_path.iterdir()}


def tree(folder: Path) -> dict[str, Any]:
    """Return everything below a folder, with content, identity and time of writing."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (content, stat.st_ino, stat.st_mtime_ns if content else 0)
    return found


def refused(command: str, output: str, *more: str, cwd: Path | None = None) -> str:
    """Run a command that must not do it, and return its one line."""
    before = os.getcwd()  # noqa: PTH109
    os.chdir(cwd or before)
    try:
        result = CliRunner().invoke(group, [*command.split(), output, *more])
    finally:
        os.chdir(before)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    (line,) = result.stderr.splitlines()
    assert line.startswith("excise: ")
    return line


def in_place(command: str, name: str) -> bool:
    return name == "model" and command.split()[0] in ("apply", "revert")


@pytest.mark.parametrize("command", VERBS)
def test_nothing_of_another_kind_is_lost(command: str, files: dict[str, str], tmp_path: Path):
    before, filled = tree(tmp_path), command.format(**files)
    for name, path in files.items():
        if in_place(command, name) or (name == VERBS[command] != "model"):
            continue
        for way in (path, f"{path}/../{name}"):
            line = refused(filled, way, "--overwrite")
            assert way in line
            assert "not overwritten" in line
        refused(filled, path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", VERBS)
def test_the_same_kind_is_replaced(command: str, files: dict[str, str], tmp_path: Path):
    """What the test above refuses is refused for its kind: of its own it would be replaced."""
    kind = VERBS[command]
    place = tmp_path / "mine"
    if kind == "model":
        shutil.copytree(files["model"], place)
    elif kind in KINDS:
        shutil.copytree(files[kind], place)
    else:
        place.write_text({"page": "<!doctype html>", "drawing": "<svg>", "graph": "digraph",
                          "EAP-IG file": '{"cfg": 1}'}[kind])  # fmt: skip
    check_output(place, True, kind, files.values())


@pytest.mark.parametrize("command", [c for c, kind in VERBS.items() if kind == "model"])
def test_a_folder_around_the_model_is_not_replaced(
    command: str, files: dict[str, str], tmp_path: Path
):
    outer = tmp_path / "outer"
    shutil.copytree(files["model"], outer)
    shutil.move(files["model"], outer / "inner")
    (tmp_path / "link").symlink_to(outer / "inner")
    before = tree(tmp_path)
    for model in (outer / "inner", tmp_path / "link"):
        filled = command.format(**{**files, "model": model})
        line = refused(filled, str(outer), "--overwrite")
        assert f"since {model} is read" in line
        assert f"since {model} is read" in refused(filled, ".", "--overwrite", cwd=outer)
    if command.startswith("prune"):
        line = refused(filled, str(tmp_path / "link"), "--overwrite")
        assert "is read" in line
    assert tree(tmp_path) == before


def verbs() -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command


def test_every_output_is_in_the_table():
    outputs = {
        (command.name, param.opts[0])
        for command in verbs()
        for param in command.params
        if isinstance(param.type, shared.Writable)
    }
    assert outputs == {(line.split()[0], line.split()[-1]) for line in VERBS}


def test_every_input_is_known():
    """A new option of text that names no file is added here; one that names a file is readable."""
    names = {
        param.name
        for command in verbs()
        for param in command.params
        if type(param.type) is type(click.STRING)
    }
    assert names <= NO_PATHS, names - NO_PATHS


NO_PATHS = {
    "aggregate", "behaviour", "attribution_dtype", "batch_size", "budget", "budget_unit", "budgets",
    "compare", "component", "components", "counterfactual", "criterion", "device", "device_map",
    "dtype", "factors", "layer_device", "least", "level", "method", "order", "protocol", "rank",
    "rare", "recipe", "revision", "scope", "sizes", "sweep", "target", "task", "tasks", "update",
    "ablation", "weights", "zero_shot",
}  # fmt: skip


# files of show


@pytest.fixture
def circuit(files: dict[str, str], tmp_path: Path) -> Path:
    """Return a circuit folder."""
    command = f"circuit {files['model']} --task ioi --samples 8 --allow-failing --controls 0"
    place = tmp_path / "found"
    arguments = [*command.split(), "--size", "4", "-o", str(place)]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert Circuit.from_pretrained(place).size == 4
    return place


def test_files_are_replaced_when_told(circuit: Path, tmp_path: Path):
    places = {kind: tmp_path / f"c.{kind}" for kind in ("html", "svg", "dot", "eap-ig")}
    options = [word for kind, place in places.items() for word in (f"--{kind}", str(place))]
    command = ["show", str(circuit), *options]
    assert CliRunner().invoke(group, command).exit_code == 0
    first = {kind: place.read_bytes() for kind, place in places.items()}
    for place in places.values():
        place.write_bytes(place.read_bytes()[:40])
    before = tree(tmp_path)
    assert "exists" in refused(" ".join(command[:-1]), command[-1])
    assert tree(tmp_path) == before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for kind, place in places.items():
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
            line = refused(f"show {circuit} --{kind}", str(place), "--overwrite")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert line == f"excise: {place} cannot be written: {os.strerror(errno.EFBIG)}"
    assert tree(tmp_path) == before
    assert CliRunner().invoke(group, [*command, "--overwrite"]).exit_code == 0
    assert {kind: place.read_bytes() for kind, place in places.items()} == first
