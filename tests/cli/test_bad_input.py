"""Bad input: exit code 1, one line that names the value, and nothing left on the disk."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result
from excise.cli.main import group
from safetensors.torch import load_file, save_file


Folder = Callable[[str], Path]


@pytest.fixture
def files(
    tmp_path: Path, tiny_folder: Folder, scored: Folder, prompts_file: Path, text_file: Path
) -> dict[str, str]:
    """Return good and bad files by name, for the commands below."""
    rows = {
        "broken": '{"clean": "John", "answer": "Mary"}\n{"clean": \n',
        "textless": '{"clean": "John"}\n{"answer": "Mary"}\n',
        "number": '{"clean": "John", "answer": 7}\n',
        "many": '{"clean": "John", "answer": "Mary John"}\n',
        "unknown": '{"clean": "John", "answer": "zebra"}\n',
        "bare": '{"clean": "John"}\n',
        "long": json.dumps({"clean": "John " * 600, "answer": "Mary"}) + "\n",
        "empty": "\n",
        "taken": "a file",
    }
    for name, text in rows.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    found = {name: str(tmp_path / name) for name in (*rows, "binary", "missing", "out")}
    found |= {"model": str(tiny_folder("llama-gqa")), "opt": str(tiny_folder("opt"))}
    found |= {"prompts": str(prompts_file), "text": str(text_file)}
    found |= {"relevance": str(scored("llama-gqa")), "foreign": str(scored("opt"))}
    for name, change in CHANGES.items():
        source = tiny_folder("llama-gqa") if "model" in name else scored("llama-gqa")
        shutil.copytree(source, tmp_path / name)
        change(tmp_path / name)
        found[name] = str(tmp_path / name)
    return found


def nan(file: str, tensor: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        tensors[tensor].view(-1)[3] = float("nan")
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return change


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def config(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_text(text)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "nan_model": nan("model.safetensors", "model.layers.1.mlp.up_proj.weight"),
    "cut_model": cut("model.safetensors"),
    "gpt2_model": config('{"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}'),
    "no_model": lambda folder: (folder / "config.json").unlink(),
    "nan_relevance": nan("relevance.safetensors", "heads"),
    "cut_relevance": cut("relevance.safetensors"),
    "list_relevance": config("[]"),
    "new_relevance": config('{"kind": "relevance", "schema": 99}'),
}

SCORE = "score {model} --prompts {prompts} -o {out}"
TEXT = "score {model} --text {text} -o {out}"
TOXIC = "eval {model} --toxicity {prompts} --scorer words:{text}"
PRUNE = "prune {model} --relevance {relevance} --components neurons --zero --sparsity 0.3 -o {out}"

CASES = [
    # what is read
    ("score {model} --text {missing} -o {out}", "{missing}"),
    ("score {model} --text {binary} -o {out}", "UTF-8"),
    ("score {model} --prompts {empty} -o {out}", "{empty}"),
    ("score {model} --prompts {broken} -o {out}", "{broken}, line 2"),
    ("score {model} --prompts {textless} -o {out}", "{textless}, line 2"),
    ("score {model} --prompts {number} -o {out}", "7"),
    ("score {model} --prompts {many} -o {out}", "Mary John"),
    ("score {model} --prompts {unknown} -o {out}", "zebra"),
    ("score {model} --prompts {bare} -o {out}", "answer"),
    ("score {model} --prompts {bare} --target continuation -o {out}", "John"),
    ("score {opt} --prompts {long} -o {out}", "601"),
    (TEXT + " --length 1000", "1000"),
    (TEXT + " --length 1", "length=1"),
    ("eval {model} --perplexity {missing}.txt", "{missing}"),
    # which model
    ("score {missing} --prompts {prompts} -o {out}", "{missing}"),
    ("score {missing}.gguf --prompts {prompts} -o {out}", "{missing}"),
    ("score {nan_model} --prompts {prompts} -o {out}", "model.layers.1.mlp.up_proj.weight"),
    ("score {cut_model} --prompts {prompts} -o {out}", "{cut_model}"),
    ("score {gpt2_model} --prompts {prompts} -o {out}", "gpt2"),
    ("score {no_model} --prompts {prompts} -o {out}", "{no_model}"),
    (SCORE + " --dtype float12", "float12"),
    (SCORE + " --device nowhere", "nowhere"),
    (SCORE + " --device cpu --device-map auto", "--device-map"),
    # which words
    (SCORE + " --method lpr", "'lrp'"),
    (SCORE + " --target logits", "'logit'"),
    (SCORE + " --components heads,tails", "tails"),
    (SCORE + " --aggregate sum", "sum"),
    (SCORE + " --weights *conv*", "*conv*"),
    (SCORE + " --samples 0", "0"),
    (SCORE + " --samples -1", "-1"),
    (SCORE + " --batch-size 0", "'0'"),
    (SCORE + " --epsilon -1", "-1"),
    ("score {model} --task io -o {out}", "'ioi'"),
    ("eval {model} --task io", "'ioi'"),
    ("eval {model}", "--perplexity"),
    ("eval {model} --perplexity {text} --window 1", "1"),
    ("eval {model} --perplexity {text} --window 513", "513"),
    ("eval {model} --perplexity {text} --window 64 --limit 0", "limit is 0"),
    ("eval {model} --perplexity {bare} --window 64", "tokens"),
    ("eval {model} --perplexity {text} --protocol widow", "'window'"),
    ("eval {model} --perplexity {empty}", "{empty}"),
    ("eval {model} --repetition --max-empty 1.5", "max_empty is 1.5"),
    ("eval {model} --repetition --max-empty nan", "--max-empty is nan"),
    (TOXIC.replace("{prompts}", "{missing}.jsonl"), "{missing}"),
    (TOXIC.replace("{prompts}", "{empty}"), "{empty}"),
    (TOXIC + " --scorer profanty", "'profanity'"),
    (TOXIC + " --scorer words:{missing}", "{missing}"),
    (TOXIC + " --scorer words:{text}", "each one once"),
    (TOXIC + " --completions -1", "completions is -1"),
    (TOXIC + " --new-tokens 0", "new_tokens is 0"),
    (TOXIC + " --new-tokens 600", "positions"),
    (TOXIC + " --temperature nan", "temperature is nan"),
    (TOXIC + " --top-p 1.5", "top_p is 1.5"),
    (TOXIC + " --threshold 0", "threshold is 0"),
    (TOXIC + " --max-prompts 0", "limit is 0"),
    (TOXIC + " --gate {missing}", "{missing}"),
    (TOXIC + " --gate {binary}", "UTF-8"),
    (TOXIC + " --gate {broken}", "{broken}"),
    (TOXIC + " --attribution {missing}", "{missing}"),
    (TOXIC + " --attribution {model}", "{model} does not say which prompts"),
    (TOXIC + " -o {taken}", "{taken}"),
    (TOXIC + " -o {relevance}", "{relevance}"),
    (TOXIC.replace("{model}", "{missing}"), "{missing}"),
    (TOXIC.replace("{model}", "{cut_model}"), "{cut_model}"),
    (SCORE + " --task ioi", "--task and --prompts"),
    ("score {model} -o {out}", "--prompts"),
    # where it goes
    ("score {model} --prompts {prompts}", "-o"),
    ("score {model} --prompts {prompts} -o {taken}", "{taken}"),
    ("score {model} --prompts {prompts} -o {taken} --overwrite", "{taken}"),
    ("score {model} --prompts {prompts} -o {taken}/out", "{taken}"),
    ("score {model} --prompts {prompts} -o {taken}/deep/out", "{taken}"),
    ("score {model} --prompts {prompts} -o {nan_relevance}", "{nan_relevance}"),
    ("prune {model} --relevance {relevance} --sparsity 0.3", "-o"),
    ("prune {model} --relevance {relevance} --components heads -o {out}", "--sparsity"),
    ("show {relevance} --html {taken}/page.html", "{taken}"),
    ("show {relevance} --html {taken}", "{taken}"),
    ("show {relevance} --html {taken} --overwrite", "{taken}"),
    ("show {relevance} --html {relevance}/config.json --overwrite", "{relevance}/config.json"),
    # which relevance
    ("show {missing}", "{missing}"),
    ("show {model}", "llama"),
    ("show {nan_relevance}", "heads"),
    ("show {cut_relevance}", "{cut_relevance}"),
    ("show {list_relevance}", "{list_relevance}"),
    ("show {new_relevance}", "99"),
    ("show {relevance} --top 0", "0"),
    ("show {relevance} --rank up", "up"),
    (PRUNE.replace("{relevance}", "{foreign}"), "{opt}"),
    (PRUNE.replace("{relevance}", "{nan_relevance}"), "heads"),
    (PRUNE.replace("{relevance}", "{cut_relevance}"), "{cut_relevance}"),
    (
        PRUNE.replace("{relevance}", "{foreign}").replace("neurons --zero", "weights")
        + " --other-model",
        "fc1",
    ),
    (PRUNE.replace("0.3", "1.5"), "1.5"),
    (PRUNE.replace("0.3", "nan"), "nan"),
    (PRUNE + " --components tokens", "tokens"),
    (PRUNE + " --rank up", "up"),
]


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Return everything below a folder with its content."""
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def expect_one_line(result: Result, named: str) -> None:
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("excise: ")
    assert named in line


@pytest.mark.parametrize(("command", "named"), CASES)
def test_one_line_and_nothing_left(files: dict[str, str], tmp_path: Path, command: str, named: str):
    before = tree(tmp_path)
    arguments = [word.format(**files) for word in command.split()]
    expect_one_line(CliRunner().invoke(group, arguments), named.format(**files))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", [SCORE, PRUNE])
@pytest.mark.parametrize("call", ["save", "replace"])
def test_a_full_disk(
    files: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    call: str,
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "replace":
        monkeypatch.setattr(Path, "replace", full)
    else:
        import transformers.modeling_utils as modeling

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        monkeypatch.setattr(modeling, "safe_save_file", full, raising=False)
    before = tree(tmp_path)
    result = CliRunner().invoke(group, [word.format(**files) for word in command.split()])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"excise: {files['out']} cannot be written: No space left on device"
    )
    assert tree(tmp_path) == before


def test_debug_shows_the_traceback(files: dict[str, str]):
    result = CliRunner().invoke(group, ["--debug", "show", files["missing"]])
    assert type(result.exception).__name__ == "ExciseError"


def test_the_bad_files_are_bad_in_one_way_only(files: dict[str, str]):
    """The folders that the cases above spoil are fine before that."""
    assert CliRunner().invoke(group, ["show", files["relevance"]]).exit_code == 0
    assert torch.isfinite(
        load_file(f"{files['model']}/model.safetensors")["model.norm.weight"]
    ).all()
