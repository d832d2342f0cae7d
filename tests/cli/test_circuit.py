"""excise circuit, and what show, diff and ls make of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from excise.circuits import find
from excise.circuits.circuit import Circuit
from excise.cli.main import group


def call(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    assert code or "Traceback" not in done.output
    return done.stdout if not code else done.stderr


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    names = ["Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma"]
    with path.open("w") as file:
        for index, one in enumerate(names):
            other = names[index - 1]
            row = {
                "clean": f"When {one} and {other} sat there , {other} gave it to",
                "counterfactual": f"When {one} and {other} sat there , {one} gave it to",
                "answer": one, "wrong": other,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path


QUICK = ("--samples", 8, "--controls", 1, "--allow-failing", "--batch-size", 8)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_a_task_on_both_families(tiny_folder: Callable[[str], Path], tmp_path: Path, kind: str):
    said = call(
        "circuit", tiny_folder(kind), "--task", "ioi", *QUICK, "--size", 4, "--minimality",
        "-o", tmp_path / "c", "--json",
    )  # fmt: skip
    found = json.loads(said)
    assert found["size"] == 4 == len(found["nodes"])
    for name in ("faithfulness", "cpr", "cmd", "completeness", "accuracy", "minimality"):
        assert set(found[name]) >= {"value", "ci"}
    assert (tmp_path / "c" / "circuit.html").stat().st_size > 20_000
    assert Circuit.from_pretrained(tmp_path / "c").examples[0]["tokens"]
    assert "4 of 10 nodes" in call("show", tmp_path / "c")


@pytest.mark.parametrize("level", ["edges", "neurons", "weights", "kv-groups"])
def test_every_grain(tiny_folder: Callable[[str], Path], tmp_path: Path, prompts: Path, level: str):
    size = 4 if level == "kv-groups" else 12
    say = call(
        "circuit", tiny_folder("llama-gqa"), "--prompts", prompts, f"--{level}", "--size", size,
        *QUICK, "-o", tmp_path / "c",
    )  # fmt: skip
    assert f"of {len(Circuit.from_pretrained(tmp_path / 'c').in_circuit)} {level}" in say
    assert "faithfulness" in say


def test_what_other_tools_read_comes_back(
    tiny_folder: Callable[[str], Path], tmp_path: Path, prompts: Path
):
    model = tiny_folder("llama-gqa")
    source = ("circuit", model, "--prompts", prompts, "--edges", "--size", 25, *QUICK)
    call(*source, "-o", tmp_path / "a")
    files = [tmp_path / name for name in ("c.svg", "c.dot", "c.json", "c.html")]
    call("show", tmp_path / "a", "--svg", files[0], "--dot", files[1], "--eap-ig", files[2],
         "--html", files[3])  # fmt: skip
    assert files[0].read_text().startswith("<svg")
    assert files[1].read_text().startswith("digraph")
    call(*source, "--scores", files[2], "-o", tmp_path / "b")
    made = Circuit.from_pretrained(tmp_path / "b").config["made_from"]
    digest = hashlib.sha256(files[2].read_bytes()).hexdigest()[:16]
    assert made["scores"] == {"file": str(files[2]), "sha256": digest}
    found = json.loads(call("diff", tmp_path / "a", tmp_path / "b", "--json"))
    assert found["jaccard"] == 1.0
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert "by chance" in call("diff", tmp_path / "a", tmp_path / "b")


def test_scores_of_other_counterfactuals_are_not_taken(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def ask(kind: str, out: str) -> tuple[object, ...]:
        return ("circuit", tiny_folder("llama-gqa"), "--task", "ioi", "--counterfactual", kind,
                *QUICK, "--size", 3, "--resume", "-o", tmp_path / out)  # fmt: skip

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # behind the scores, as a kill may come
        patched.setattr(find, "choose", stopped)
        call(*ask("third-name", "a"), code=130)
    assert "another run, with other data: repeat" in call(*ask("swapped", "a"), code=1)
    call(*ask("third-name", "a"))
    call(*ask("swapped", "b"))
    one, two = (Circuit.from_pretrained(tmp_path / name).config for name in "ab")
    assert one["made_from"] == {"source": "task ioi", "counterfactual": "third-name"}
    assert two["made_from"] == {"source": "task ioi", "counterfactual": "swapped"}
    for part, first in one["data"].items():
        assert first.split("-")[0] == two["data"][part].split("-")[0]  # the prompts are the same
        assert first != two["data"][part]


def test_without_counterfactuals_parts_are_zeroed(
    tiny_folder: Callable[[str], Path], tmp_path: Path, prompts: Path
):
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    for row in rows:
        del row["counterfactual"]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    call("circuit", tiny_folder("opt"), "--prompts", prompts, "--size", 3, *QUICK, "-o",
         tmp_path / "c")  # fmt: skip
    config = Circuit.from_pretrained(tmp_path / "c").config
    assert (config["method"], config["ablation"]) == ("lrp", "zero")


def test_a_plan_without_a_run(tiny_folder: Callable[[str], Path], tmp_path: Path):
    done = CliRunner().invoke(
        group, ["circuit", str(tiny_folder("opt")), "--task", "ioi", "--samples", "8", "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    assert (
        "8 prompts to score, 4 prompts to choose, 8 prompts to test; peak memory about"
        in done.stderr
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "ioi"), "say where the circuit goes"),
        (("-o", "c"), "give one of --task and --prompts"),
        (("--task", "oio", "-o", "c"), "unknown task 'oio': did you mean 'ioi'"),
        (("--task", "ioi", "--method", "rlp", "-o", "c"), "unknown circuit method 'rlp'"),
        (("--task", "ioi", "--rank", "size", "-o", "c"), "unknown rank 'size'"),
        (("--task", "ioi", "--ablation", "noise", "-o", "c"), "unknown ablation 'noise'"),
        (("--task", "ioi", "--samples", "0", "-o", "c"), "--samples is 0"),
        (("--task", "ioi", "--counterfactual", "x", "-o", "c"), "unknown counterfactual"),
        (("--task", "ioi", "--weights", "--method", "eap", "-o", "c"), "scores no weights"),
        (("--task", "ioi", "--samples", "8", "-o", "c"), "the model does not do ioi"),
        (("--prompts", "none.jsonl", "-o", "c"), "no file at none.jsonl"),
    ],
)
def test_bad_input_is_one_line(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], said: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    message = call("circuit", tiny_folder("llama-gqa"), *options, code=1)
    assert said in message
    assert message.strip().splitlines()[-1].startswith("excise: ")
    assert not (tmp_path / "c").exists()


def test_tables_are_listed():
    found: dict[str, Any] = json.loads(call("ls", "--json"))
    assert {"relp", "eap-ig", "patching"} <= set(found["circuit-methods"])
    assert {"ioi", "greater-than", "induction"} <= set(found["tasks"])
    assert set(found["levels"]) == {"nodes", "kv-groups", "neurons", "edges", "weights"}
    assert set(found["ablations"]) == {"resample", "mean", "zero"}
    assert {"chain", "backup", "negative"} <= set(found["planted"])


def test_files_that_a_circuit_has_no_use_for(
    tiny_folder: Callable[[str], Path], tmp_path: Path, prompts: Path
):
    call("circuit", tiny_folder("llama-gqa"), "--prompts", prompts, "--size", 3, *QUICK, "-o",
         tmp_path / "c")  # fmt: skip
    assert "--against cannot be given" in call(
        "show", tmp_path / "c", "--against", tmp_path / "c", code=1
    )
    assert "outputs need a folder" in call(
        "show", tmp_path / "c", "--svg", prompts / "c.svg", code=1
    )
