"""The README's commands run, on a tiny model of each family, and its tables are the code's."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from excise.circuits.levels import LEVELS
from excise.circuits.methods import CIRCUIT_METHODS
from excise.cli.main import group
from excise.core.families import FAMILIES
from excise.eval.policy import parse_policy
from excise.lrp.methods import METHODS


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CIRCUITS = (ROOT / "docs" / "circuits.md").read_text()
EVALUATION = (ROOT / "docs" / "evaluation.md").read_text()
USE = README.split("<!-- every command from here on", 1)[1]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", USE, re.DOTALL)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_commands_run(
    kind: str,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    pytest.importorskip("profanity_check")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    lines = "\n".join(blocks("sh")).replace("smollm2", str(tiny_folder(kind))).splitlines()
    assert sum(line.startswith("excise ") for line in lines) >= 9
    for line in lines:
        if line.startswith("excise "):  # in this process: imports take longer than the commands
            run(shlex.split(line)[1:])
        else:
            line = re.sub("^python ", f"{sys.executable} ", line)
            subprocess.run(["bash", "-e", "-c", line], check=True)
    assert "<svg" in Path("ioi.html").read_text()
    assert "Gate: cut not met" in Path("report/report.html").read_text()
    for folder in ("ioi", "mine", "weights", "cut", "by-relevance", "half", "smaller", "table",
                   "ioi-circuit", "ioi-edges"):  # fmt: skip
        assert Path(folder, "config.json").is_file()


def run(arguments: list[str]) -> None:
    if arguments[0] == "circuit":
        arguments = [*arguments, "--allow-failing"]  # random models do no task
    if "--gate" not in arguments:
        group(arguments, standalone_mode=False)
        return
    random_models_say_little = ["--max-empty", "1"]
    with pytest.raises(SystemExit, match="3"):  # the README says so
        group([*arguments, *random_models_say_little], standalone_mode=False)


def test_evaluation_docs_run(
    tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    code = "\n".join(re.findall(r"```python\n(.*?)```", EVALUATION, re.DOTALL))
    for name, kind in (("smollm2", "llama-gqa"), ("cut", "llama-mha")):
        code = code.replace(f'"{name}"', repr(str(tiny_folder(kind))))
    exec(code, {})
    said = capsys.readouterr().out
    assert "perplexity.token_perplexity" in said
    assert "unique_token_ratio_ci" in said


def test_the_policy_in_the_docs_is_one():
    (policy,) = re.findall(r"```yaml\n(.*?)```", EVALUATION, re.DOTALL)
    assert [rule.name for rule in parse_policy(yaml.safe_load(policy))] == [
        "perplexity.max_increase", "perplexity.equivalence", "toxicity.min_decrease",
        "repetition.max_decrease", "tasks.*.max_decrease", "zero_shot.arc_easy.max_decrease",
        "held_out.required",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_python_runs(
    tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, kind: str,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    code = "\n".join(blocks("python")).replace('"smollm2"', repr(str(tiny_folder(kind))))
    code = code.replace("size=30", "size=3, allow_failing=True")  # a random model fails any task
    exec(code, {})
    said = capsys.readouterr().out
    assert "half per product on 2 modules" in said or kind == "opt"
    assert "accuracy" in said
    assert (tmp_path / "sparse" / "model.safetensors").is_file()


def test_circuits_docs_run(
    tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", CIRCUITS, re.DOTALL)
    code = code.replace('"smollm2"', repr(str(tiny_folder("opt"))))
    code = code.replace("size=30", "size=3, allow_failing=True")  # a random model fails any task
    exec(code, {})
    assert "3 of 10 nodes" in capsys.readouterr().out
    assert Path("ioi-circuit/circuit.html").is_file()
    for name in CIRCUIT_METHODS:
        assert f"`{name}`" in CIRCUITS
    for name in LEVELS:
        assert f"| `{name}` |" in CIRCUITS


def test_tables_are_the_codes():
    for name, family in FAMILIES.items():
        assert f"| `{name}` | {family.example} |" in README
    for name, method in METHODS.items():
        assert f"| `{name}` | {method.summary} |" in README
