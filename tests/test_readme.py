"""The README's commands run, on a tiny model of each family, and its tables are the code's."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from excise.cli.main import group
from excise.core.families import FAMILIES
from excise.lrp.methods import METHODS


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(blocks("sh")).replace("smollm2", str(tiny_folder(kind))).splitlines()
    assert sum(line.startswith("excise ") for line in lines) >= 9
    for line in lines:
        if line.startswith("excise "):  # in this process: imports take longer than the commands
            group(shlex.split(line)[1:], standalone_mode=False)
        else:
            line = re.sub("^python ", f"{sys.executable} ", line)
            subprocess.run(["bash", "-e", "-c", line], check=True)
    assert "<svg" in Path("ioi.html").read_text()
    for folder in ("ioi", "mine", "weights", "cut", "sparse"):
        assert Path(folder, "config.json").is_file()


def test_python_runs(tiny_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]):
    (code,) = blocks("python")
    exec(code.replace('"smollm2"', repr(str(tiny_folder("llama-gqa")))), {})
    assert "half per product on 2 modules" in capsys.readouterr().out


def test_tables_are_the_codes():
    for name, family in FAMILIES.items():
        assert f"| `{name}` | {family.example} |" in README
    for name, method in METHODS.items():
        assert f"| `{name}` | {method.summary} |" in README
