"""What others wrote runs no code, fetches nothing, steers no terminal and costs no hours."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import excise
import pytest
from click.testing import CliRunner, Result
from excise.cli.main import VERBS, group
from excise.cli.words import FilePath, Number, Whole
from excise.viz.table import table


Folder = Callable[[str], Path]


def run(*words: Any) -> Result:
    return CliRunner().invoke(group, list(map(str, words)))


@pytest.fixture
def relevance(tmp_path: Path, scored: Folder) -> Path:
    path = tmp_path / "relevance"
    shutil.copytree(scored("llama-gqa"), path)
    return path


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_tokenizer_that_an_artefact_names_runs_no_code(
    tmp_path: Path, tiny_folder: Folder, relevance: Path
):
    evil = tmp_path / "evil"
    shutil.copytree(tiny_folder("llama-gqa"), evil)
    (evil / "tok.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Tok: pass\n")
    settings = json.loads((evil / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Tok", "auto_map": {"AutoTokenizer": ["tok.Tok", "tok.Tok"]}}
    (evil / "tokenizer_config.json").write_text(json.dumps(settings))
    model = json.loads((evil / "config.json").read_text())
    model |= {"model_type": "no-such", "auto_map": {"AutoTokenizer": ["tok.Tok", "tok.Tok"]}}
    (evil / "config.json").write_text(json.dumps(model))
    change(relevance, model=str(evil))
    words = ["show", str(relevance), "--html", str(tmp_path / "page.html")]
    result = CliRunner().invoke(group, words, input="y\n")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_is_not_here_is_not_fetched(
    tmp_path: Path, relevance: Path, monkeypatch: pytest.MonkeyPatch
):
    import transformers

    def fetch(*_: Any, **__: Any) -> None:
        pytest.fail("it was looked for")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fetch)
    change(relevance, model="somebody/model\x1b[2J")
    result = run("show", relevance, "--html", tmp_path / "page.html")
    assert result.exit_code == 0
    assert "give --tokenizer" in result.stderr
    assert "\x1b" not in result.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("score", "M", "--prompts", "P", "-o", "out", "--batch-size", "²"), "--batch-size is '²'"),
        (("score", "M", "--prompts", "P", "-o", "out", "--samples", "1_0"), "'1_0'"),
        (("score", "M", "--prompts", "P", "-o", "a" * 300), "too long"),
        (("score", "M", "--prompts", "P", "-o", "bad\udcff"), "no name"),
        (("score", "M", "--prompts", "b" * 300, "-o", "out"), "too long"),
        (("score", "c" * 300, "--prompts", "P", "-o", "out"), "too long"),
        (("score", "M", "--prompts", "P", "-o", "out", "--device", "meta"), "device 'meta'"),
        (("circuit", "M", "--prompts", "P", "-o", "out", "--controls", "-1"), "controls is -1"),
        (("circuit", "M", "--prompts", "P", "-o", "out", "--controls", "9" * 5000), "--controls"),
        (("circuit", "M", "--prompts", "P", "-o", "out", "--faithfulness", "nan"), "is nan"),
        (("prune", "M", "--scope", "\u0662:\u0664", "-o", "out"), "unknown scope"),
        (("prune", "M", "--sparsity", "\u0661", "-o", "out"), "is no number"),
        (("prune", "M", "--sparsity", "1e-9", "--recipe", "wanda", "-o", "out", "--length", "8"),
         "sparsity 1e-09 cuts no weight"),
        (("prune", "M", "--sparsity", "1e-9", "--relevance", "R", "-o", "out", "--components",
          "heads", "--zero"), "sparsity 1e-09 cuts none"),
        (("prune", "M", "--sparsity", "0.5", "--recipe", "wanda", "-o", "out", "--length", "8",
          "--layer-device", "meta"), "--layer-device cpu"),
        (("show", "R", "--html", ""), "no name"),
        (("revert", "a\0b", "R", "-o", "out"), "no name"),
        (("show", "R", "--top", "0x1"), "'0x1'"),
        (("score", "M", "--no-such-option"), "--no-such-option"),
        (("prune",), "MODEL"),
        (("no-such-verb",), "no-such-verb"),
    ],
)  # fmt: skip
def test_odd_words_are_one_line(
    tmp_path: Path,
    tiny_folder: Folder,
    relevance: Path,
    prompts_file: Path,
    words: tuple[str, ...],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    known = {"M": str(tiny_folder("llama-gqa")), "P": str(prompts_file), "R": str(relevance)}
    before = set(tmp_path.rglob("*"))
    result = run(*(known.get(word, word) for word in words))
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert named in result.stderr.splitlines()[-1]
    assert len(result.stderr.splitlines()[-1]) < 600
    assert set(tmp_path.rglob("*")) == before


def test_every_number_and_path_of_every_verb_is_read_by_one_grammar():
    context = click.Context(group)
    for verb in VERBS:
        command = group.get_command(context, verb)
        assert command
        for param in command.params:
            kind = param.type
            if isinstance(kind, click.Path):
                assert isinstance(kind, FilePath), (verb, param.name)
            if kind.name.split()[0] in ("integer", "float"):
                assert isinstance(kind, Whole | Number), (verb, param.name)


def test_all_that_is_printed_goes_through_one_door():
    folder = Path(excise.__file__).parent / "cli"
    door = re.compile(r"click\.s?echo|\bprint\(")
    found = {path.name for path in folder.glob("*.py") if door.search(path.read_text())}
    assert found == {"terminal.py"}


def test_names_of_others_steer_no_terminal(tmp_path: Path, tiny_folder: Folder, relevance: Path):
    change(relevance, method="lrp\x1b[2J\x07\u202e")
    result = CliRunner().invoke(group, ["show", str(relevance)], color=True)
    assert result.exit_code == 0
    assert "lrp\N{REPLACEMENT CHARACTER}[2J" in result.stdout
    assert not set("\x1b\x07\u202e") & set(result.output)


def test_wide_blanks_take_no_time():
    started = time.perf_counter()
    table(["a", "b"], [["x", " " * 200_000 + "1" + " " * 200_000 + "x"]])
    table(["a", "b"], [["x", "1" + " " * 200_000 + "2"]])
    assert time.perf_counter() - started < 1
