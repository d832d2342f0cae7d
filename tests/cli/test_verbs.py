"""Every verb on a tiny Llama and a tiny OPT: exit codes, files, JSON keys."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from excise import Relevance
from safetensors.torch import load_file


Run = Callable[..., Result]
Folder = Callable[[str], Path]

both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])


def names(path: Path) -> list[str]:
    """List a folder, hidden files and all."""
    return sorted(entry.name for entry in path.iterdir())


@both
def test_score_prompts(
    excise: Run, tiny_folder: Folder, prompts_file: Path, tmp_path: Path, kind: str
):
    out, model = tmp_path / "deep" / "out", tiny_folder(kind)
    result = excise(
        "score", model, "--prompts", prompts_file, "--weights", "*", "-o", out, "--json"
    )
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)  # one object on stdout, all else on stderr
    assert printed["output"] == str(out)
    assert printed["model"] == str(model)
    assert printed["target"] == "logit"
    assert printed["n_samples"] == 6
    assert printed["source"] == f"prompts {prompts_file}"
    assert {"model_hash", "method", "aggregate", "data", "seconds", "peak"} <= printed.keys()
    assert names(out) == ["README.md", "config.json", "relevance.safetensors"]
    assert names(out.parent) == ["out"]
    tensors = load_file(out / "relevance.safetensors")
    weights = {name for name in tensors if name.startswith("weights/")}
    single = {"heads", "neurons", "tokens", "token_ids", "samples/heads", "samples/neurons"}
    assert tensors.keys() - weights == single
    parameters = load_file(model / "model.safetensors")
    linears = {f"weights/{k}" for k, w in parameters.items() if ".layers." in k and w.ndim == 2}
    assert weights == linears
    assert all(tensors[k].shape == parameters[k.removeprefix("weights/")].shape for k in weights)
    assert torch.allclose(tensors["samples/heads"].mean(0), tensors["heads"], atol=1e-6)


@both
def test_score_text(excise: Run, tiny_folder: Folder, text_file: Path, tmp_path: Path, kind: str):
    out = tmp_path / "out"
    source = ("--text", text_file, "--samples", 4, "--length", 16)
    result = excise("score", tiny_folder(kind), *source, "-o", out, "--aggregate", "square")
    assert result.exit_code == 0, result.stderr
    assert str(out) in result.stdout
    relevance = Relevance.from_pretrained(out)
    assert relevance.config["target"] == "next-tokens"
    assert relevance.get("tokens").shape == (4, 16)
    assert bool((relevance.get("heads") >= 0).all())


def test_score_task_dry_run_writes_nothing(excise: Run, tiny_folder: Folder, tmp_path: Path):
    result = excise("score", tiny_folder("opt"), "--task", "ioi", "--samples", 8, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout).keys() == {"samples", "batch_size", "peak"}
    assert names(tmp_path) == []


def test_score_overwrites_only_when_told(
    excise: Run, tiny_folder: Folder, prompts_file: Path, tmp_path: Path
):
    arguments = ("score", tiny_folder("opt"), "--prompts", prompts_file, "-o", tmp_path / "out")
    assert excise(*arguments).exit_code == 0
    assert excise(*arguments).exit_code == 1
    assert excise(*arguments, "--overwrite", "--method", "gradient").exit_code == 0
    assert Relevance.from_pretrained(tmp_path / "out").config["method"] == "gradient"
    assert names(tmp_path) == ["out"]


@both
def test_show(excise: Run, scored: Folder, prompts_file: Path, tmp_path: Path, kind: str):
    folder, page = scored(kind), tmp_path / "page.html"
    result = excise("show", folder, "--top", 3, "--html", page)
    assert result.exit_code == 0, result.stderr
    assert "95 % interval" in result.stdout
    assert str(page) in result.stdout
    html = page.read_text()
    word = json.loads(prompts_file.read_text().splitlines()[0])["answer"]
    assert word in html  # tokens are read by the model's own tokenizer
    assert Relevance.from_pretrained(folder).config["model_hash"] in html
    printed = json.loads(excise("show", folder, "--top", 3, "--json").stdout)
    assert printed["top"].keys() == {"heads", "kv_groups", "neurons"}
    expected = Relevance.from_pretrained(folder).top("heads", 3)
    rows = printed["top"]["heads"]
    assert [(row["layer"], row["unit"], row["score"]) for row in rows] == expected
    assert all(row["low"] <= row["score"] <= row["high"] for row in rows)


@both
@pytest.mark.parametrize("component", ["heads", "neurons", "weights"])
def test_prune(
    excise: Run, tiny_folder: Folder, scored: Folder, tmp_path: Path, kind: str, component: str
):
    out = tmp_path / "out"
    source = ("--relevance", scored(kind), "--zero")
    arguments = ("prune", tiny_folder(kind), *source, "--components", component)
    dry = excise(*arguments, "--sparsity", 0.25, "--dry-run", "--json")
    assert names(tmp_path) == []
    result = excise(*arguments, "--sparsity", 0.25, "-o", out, "--json")
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    planned = json.loads(dry.stdout)
    assert planned.pop("peak") > 0
    assert planned.pop("seconds") == 0
    assert {"output": str(out), **planned} == printed
    assert printed["sparsity"] == pytest.approx(0.25, abs=0.02)
    recipe = json.loads((out / "excise.json").read_text())
    assert recipe["components"] == component
    assert recipe["relevance"] == Relevance.from_pretrained(scored(kind)).config
    assert excise("eval", out, "--task", "ioi", "--samples", 4).exit_code == 0


def test_ls_reads_the_tables(excise: Run):
    from excise.circuits.ablation import ABLATIONS
    from excise.circuits.levels import LEVELS
    from excise.circuits.methods import CIRCUIT_METHODS
    from excise.circuits.testbed.planted import CIRCUITS
    from excise.core.families import FAMILIES
    from excise.eval.policy import BOUNDS
    from excise.eval.scorers import SCORERS
    from excise.lrp.methods import AGGREGATES, METHODS
    from excise.lrp.targets import SUMMARIES, TARGETS
    from excise.prune.criteria import CRITERIA
    from excise.prune.recipe import RECIPES
    from excise.prune.scopes import SCOPES
    from excise.prune.structured.units import UNIT_CRITERIA
    from excise.tasks.registry import TASKS

    tables: dict[str, Any] = {
        "families": FAMILIES,
        "methods": METHODS,
        "targets": TARGETS,
        "tasks": TASKS,
        "aggregates": AGGREGATES,
        "criteria": CRITERIA,
        "unit-criteria": UNIT_CRITERIA,
        "scopes": SCOPES,
        "recipes": RECIPES,
        "circuit-methods": CIRCUIT_METHODS,
        "levels": LEVELS,
        "ablations": ABLATIONS,
        "planted": CIRCUITS,
        "scorers": SCORERS,
        "rules": [*BOUNDS, "equivalence"],
    }
    assert TARGETS.keys() == SUMMARIES.keys()
    printed = json.loads(excise("ls", "--json").stdout)
    assert {kind: list(rows) for kind, rows in printed.items()} == {
        kind: list(table) for kind, table in tables.items()
    }
    assert excise("ls", "methods").stdout.splitlines()[0].split()[0] == "lrp"


def test_env(excise: Run):
    printed = json.loads(excise("env", "--json").stdout)
    assert {"python", "torch", "transformers", "cores", "memory", "gpus", "cache"} <= printed.keys()
    assert printed["torch"] in excise("env").stdout


def test_bad_usage_exits_2(excise: Run):
    assert excise("score", "--no-such-option").exit_code == 2
    assert excise("no-such-verb").exit_code == 2
    assert excise("prune").exit_code == 2  # MODEL is missing
    assert excise("eval", "model", "--window", "long").exit_code == 2


def test_a_process_keeps_stdout_for_the_result(
    tiny_folder: Folder, prompts_file: Path, tmp_path: Path
):
    arguments = ["score", tiny_folder("opt"), "--prompts", prompts_file, "-o", tmp_path / "out"]
    command = [sys.executable, "-m", "excise", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert json.loads(done.stdout)["n_samples"] == 6
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["6", "took"]  # no warning of any library


def test_the_embedded_model(excise: Run, smollm2: str, tmp_path: Path):
    out = tmp_path / "out"
    data = ("--task", "ioi", "--samples", 2, "--components", "heads")
    assert excise("score", smollm2, *data, "-o", out).exit_code == 0
    relevance = Relevance.from_pretrained(out)
    assert relevance.get("heads").shape == (30, 9)
    assert relevance.config["n_kv_heads"] == 3
