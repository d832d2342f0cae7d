"""correct_model: from Python what the command line writes, and a value where no dose helps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise.cli.correct import command
from excise.core.errors import ExciseError
from excise.core.loading import load_model
from excise.core.texts import text_hash
from excise.correction import run
from excise.correction.config import CorrectionConfig
from excise.correction.run import correct_model
from excise.edits.edit import Edit
from excise.tasks.ioi import ioi_prompts


Folder = Callable[[str], Path]
both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])


@pytest.fixture
def texts(tiny_tokenizer: Any) -> dict[str, list[str]]:
    return {
        "undesired": [p.clean for p in ioi_prompts(tiny_tokenizer, 24)],
        "general": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 60, 3, "validation")],
        "perplexity": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 90, 4, "test")],
        "prompts": [p.clean for p in ioi_prompts(tiny_tokenizer, 60, 5)],
    }


@pytest.fixture
def options(texts: dict[str, list[str]], tmp_path: Path) -> dict[str, Any]:
    """Return options with lists of texts; the same texts lie in files of the same names."""
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "words").write_text("David\nBerlin\nto\nMary\nJohn\nthe\n")
    return {
        "undesired": texts["undesired"], "general": texts["general"],
        "prompts": texts["prompts"], "perplexity": ["\n".join(texts["perplexity"]) + "\n"],
        "judges": [f"words:{tmp_path / 'words'}"], "window": 16, "windows": 16, "sizes": (1, 4, 12),
        "factors": (0.0, -1.0), "budgets": {"perplexity": 0.9}, "new_tokens": 6, "controls": 3,
        "tasks": ["ioi"], "task_samples": 8, "min_samples": 5, "cache": False,
    }  # fmt: skip


def live(folder: Path) -> tuple[Any, Any]:
    loaded = load_model(str(folder))
    return loaded.model, loaded.tokenizer


@both
def test_python_and_the_command_line_find_the_same(
    options: dict[str, Any], tiny_folder: Folder, tmp_path: Path, kind: str
):
    arguments = [tiny_folder(kind), "--undesired", tmp_path / "undesired", "--general",
                 tmp_path / "general", "--prompts", tmp_path / "prompts", "--judge",
                 f"words:{tmp_path / 'words'}", "--perplexity", tmp_path / "perplexity",
                 "--window", 16, "--windows", 16, "--sizes", "1,4,12", "--factor", 0, "--factor",
                 -1, "--budget", "perplexity=90%", "--new-tokens", 6, "--controls", 3, "--task",
                 "ioi", "--task-samples", 8, "--min-samples", 5, "--no-cache", "-o",
                 tmp_path / "cli"]  # fmt: skip
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code in (0, 3)
    model, tokenizer = live(tiny_folder(kind))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    correction = correct_model(model, tokenizer, **options)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert correction.edit is not None, str(correction)
    assert correction.gate_met == (done.exit_code == 0)
    assert "perplexity" in str(correction)
    assert correction._repr_html_().startswith("<iframe srcdoc=")
    correction.save_pretrained(tmp_path / "python")
    first, second = (Edit.from_pretrained(tmp_path / name) for name in ("cli", "python"))
    assert first.digest == second.digest
    assert set(first.files) == set(second.files)
    reports = []
    for name in ("cli", "python"):
        report = json.loads((tmp_path / name / "report.json").read_text())["correction"]
        report["contrast"]["behaviour"] = report["behaviour"] = "undesired"
        reports.append(report)
    assert reports[0] == reports[1]
    # what found and chose it is known, under the seal
    assert second.seen == first.seen
    assert set(map(text_hash, options["undesired"])) & second.seen.hashes
    with pytest.raises(ExciseError, match="exists"):
        correction.save_pretrained(tmp_path / "python")
    with correction.applied(model) as edited:
        assert any(not torch.equal(before[name], t) for name, t in edited.state_dict().items())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with torch.no_grad():  # the weights are no longer those of its folder
        model.get_output_embeddings().weight[0, 0] += 1
    other = correct_model(model, tokenizer, **options)
    if other.card is not None:
        with pytest.raises(ExciseError, match="lie in no folder that is known"):
            other.save_pretrained(tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_no_dose_is_a_value_and_a_dry_run_writes_nothing(
    options: dict[str, Any], tiny_folder: Folder, tmp_path: Path
):
    model, tokenizer = live(tiny_folder("opt"))
    forecast = correct_model(model, tokenizer, dry_run=True, **options)
    assert "to attribute" in forecast
    assert "MiB" in forecast
    options = {**options, "budgets": {"perplexity": 0.0}, "sizes": (10,), "factors": (-9.0,)}
    correction = correct_model(model, tokenizer, **options)
    assert correction.edit is None
    assert not correction.gate_met
    assert "no dose of 1 helps" in str(correction)
    assert correction.dose.doses
    with pytest.raises(ExciseError, match="no dose helps") as error:
        correction.save_pretrained(tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on(
    options: dict[str, Any], tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, tokenizer = live(tiny_folder("opt"))
    whole = correct_model(model, tokenizer, **options)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "choose_dose", stop)
        with pytest.raises(KeyboardInterrupt):
            correct_model(model, tokenizer, resume=tmp_path / "kept", **options)
    assert (tmp_path / "kept").is_dir()
    with monkeypatch.context() as patched:
        patched.setattr(run, "contrast", stop)  # is not ranked again
        again = correct_model(model, tokenizer, resume=tmp_path / "kept", **options)
    assert again.edit is not None
    assert whole.edit is not None
    assert again.edit.digest == whole.edit.digest
    again.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"undesired": None}, "say what is to go"),
        ({"undesired": []}, "holds no examples"),
        ({"undesired": ["a", 1]}, "number 1: a row needs"),
        ({"undesired": ["a b", ("a c", "a d")]}, "mixes pairs"),
        ({"prompts": [""]}, "`prompts` holds ''"),
        ({"perplexity": []}, "`perplexity` is empty"),
        ({"factors": ("most",)}, "`factors` hold 'most'"),
        ({"budgets": {"speed": 0.1}}, "unknown budget 'speed'"),
        ({"windows": 1}, "`windows` is 1: give at least 2"),
        ({"side_effects": ("manners",)}, "unknown side effect 'manners'"),
    ],
)
def test_bad_options_in_one_line(options: dict[str, Any], change: dict[str, Any], message: str):
    with pytest.raises(ExciseError, match=message) as error:
        CorrectionConfig(**{**options, **change})
    assert "\n" not in str(error.value)
