"""`excise eval` over several runs: what is kept, what goes on, and which prompts chose the edit."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from excise.core.generation import complete
from excise.eval import completions, perplexity, run


Run = Callable[..., Result]
Folder = Callable[[str], Path]

PROMPTS = [
    f"{word} the {noun}" for word in ("and", "one", "two") for noun in ("cat", "mat", "book")
]


@pytest.fixture
def toxicity(tmp_path: Path) -> tuple[Any, ...]:
    """Return options that measure toxicity on nine prompts."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "list.txt").write_text("cat\nbook\n")
    scorer = f"words:{tmp_path / 'list.txt'}"
    return ("--toxicity", tmp_path / "prompts.txt", "--scorer", scorer, "--completions", 2,
            "--new-tokens", 4, "--batch-size", 2, "--temperature", 2.0)  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many prompts each call completes; it can be told to stop by `-1`."""
    calls: list[int] = []

    def counted(model: Any, prompts: Any, *rest: Any) -> Iterator[Any]:
        stop = calls == [-1]
        calls[:] = [] if stop else calls
        calls.append(len(prompts))
        for number, found in enumerate(complete(model, prompts, *rest)):
            if stop and number == 5:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(completions, "complete", counted)
    return calls


def numbers(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    return {record["model"]: record["toxicity"] for record in found["models"]}


# --- the cache ---


def test_what_was_measured_is_not_measured_again(
    excise: Run,
    tiny_folder: Folder,
    toxicity: tuple[Any, ...],
    asked: list[int],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_file: Path,
):
    arguments = ("eval", tiny_folder("opt"), *toxicity, "--perplexity", text_file, "--window", 64)
    first = numbers(excise(*arguments, "--json"))
    assert asked == [9]
    assert len(list((own_cache / "eval").iterdir())) == 2
    uncached = numbers(excise(*arguments, "--json", "--no-cache"))
    assert asked == [9, 9]

    def fail(*_: Any) -> Any:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(completions, "complete", fail)
        patch.setattr(perplexity, "piece_losses", fail)
        assert numbers(excise(*arguments, "--json")) == first == uncached
    other = numbers(excise(*arguments, "--json", "--temperature", 2.0000001))
    assert asked == [9, 9, 9]
    assert other.keys() == first.keys()
    assert len(list((own_cache / "eval").iterdir())) == 3


def test_no_cache_keeps_nothing(
    excise: Run, tiny_folder: Folder, toxicity: tuple[Any, ...], own_cache: Path
):
    assert excise("eval", tiny_folder("opt"), *toxicity, "--no-cache").exit_code == 0
    assert not own_cache.exists()


def test_another_end_of_text_is_another_model(
    excise: Run, tiny_folder: Folder, tmp_path: Path, toxicity: tuple[Any, ...], asked: list[int]
):
    """Equal weights that stop at other tokens write other completions."""
    model = tmp_path / "model"
    shutil.copytree(tiny_folder("opt"), model)
    arguments = ("eval", model, *toxicity, "--max-empty", 1, "--json")
    assert numbers(excise(*arguments))[str(model)]["empty"] < 18
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(
        json.dumps({**config, "eos_token_id": list(range(160))})
    )
    assert numbers(excise(*arguments))[str(model)]["empty"] == 18
    assert asked == [9, 9]


def test_a_stopped_run_goes_on(
    excise: Run,
    tiny_folder: Folder,
    tmp_path: Path,
    toxicity: tuple[Any, ...],
    asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    arguments = ("eval", tiny_folder("opt"), *toxicity, "-o", tmp_path / "out", "--json")
    asked[:] = [-1]
    stopped = excise(*arguments)
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert stopped.stderr.splitlines()[-1] == (
        "excise: interrupted; 5 of 9 units of toxicity are kept: "
        "the same command goes on from there"
    )
    assert not (tmp_path / "out").exists()
    assert asked == [9]
    resumed = numbers(excise(*arguments))
    assert asked == [9, 4]
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "fresh"))
    assert numbers(excise(*arguments, "--overwrite")) == resumed
    assert asked == [9, 4, 9]
    asked[:] = [-1]
    nothing = excise(*arguments, "--overwrite", "--no-cache")
    assert nothing.exit_code == 130
    assert "are kept" not in nothing.stderr
    assert numbers(excise(*arguments, "--overwrite")) == resumed


def test_a_dry_run_measures_nothing(
    excise: Run,
    tiny_folder: Folder,
    tmp_path: Path,
    toxicity: tuple[Any, ...],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured")

    monkeypatch.setattr(run, "evaluate", fail)
    models = tiny_folder("opt"), tiny_folder("llama-gqa")
    result = excise("eval", *models, *toxicity, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split(": units: toxicity 9; about ")[0] for line in lines] == list(
        map(str, models)
    )
    assert not own_cache.exists()
    assert not (tmp_path / "out").exists()


# --- prompts that chose the edit ---


def test_prompts_go_from_score_through_prune_to_the_gate(
    excise: Run, tiny_folder: Folder, tmp_path: Path, toxicity: tuple[Any, ...]
):
    model, cut, policy = tiny_folder("llama-mha"), tmp_path / "cut", tmp_path / "policy.yaml"
    policy.write_text("min_samples: 2\nrare: 100 %\ntasks: {min: 0}\n")
    source = ("--task", "ioi", "--samples", 8)
    assert excise("score", model, *source, "-o", tmp_path / "relevance").exit_code == 0
    pruned = ("--relevance", tmp_path / "relevance", "--components", "heads", "--sparsity", 0.2)
    assert excise("prune", model, *pruned, "--zero", "-o", cut).exit_code == 0

    again = ("--task", "ioi", "--split", "train", "--samples", 20)
    reused = excise("eval", model, cut, *again, "--gate", policy)
    assert reused.exit_code == 3
    assert f"warning: 8 texts of tasks.ioi chose the edit of {cut}" in reused.stderr
    assert reused.stderr.splitlines()[-1] == f"excise: gate {policy} not met: held_out"
    assert "(8 of 20 of tasks.ioi): use others" in reused.stdout
    assert "8 of 20 prompts or lines of tasks.ioi chose the edit" in reused.stdout

    policy.write_text("min_samples: 2\nrare: 100 %\ntoxicity: {max: 1}\n")
    fresh = excise("eval", model, cut, *toxicity, "--max-empty", 1, "--gate", policy)
    assert fresh.exit_code == 0, fresh.output
    assert "none of the 8 prompts and lines" in fresh.stdout
    assert "warning" not in fresh.stderr


def test_prompts_of_other_edits_are_named(
    excise: Run, tiny_folder: Folder, tmp_path: Path, toxicity: tuple[Any, ...], scored: Folder
):
    policy, file = tmp_path / "policy.yaml", tmp_path / "chosen.jsonl"
    policy.write_text("min_samples: 2\nrare: 100 %\ntoxicity: {max: 1}\n")
    rows = [{"prompt": {"text": f" {prompt.upper()}\t"}} for prompt in PROMPTS[:3]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("eval", tiny_folder("opt"), *toxicity, "--gate", policy)
    assert excise(*arguments).exit_code == 0
    found = excise(*arguments, "--attribution", file)
    assert found.exit_code == 3
    assert "warning: 3 texts of toxicity chose the edit" in found.stderr
    both = excise(*arguments, "--attribution", scored("opt"), "--attribution", file)
    assert "warning: 3 texts of toxicity chose the edit" in both.stderr
    others = excise(*arguments, "--attribution", scored("opt"))
    assert others.exit_code == 0
    assert "none of the 6 prompts" in others.stdout


def test_recipes_that_say_nothing(
    excise: Run, tiny_folder: Folder, tmp_path: Path, toxicity: tuple[Any, ...]
):
    model = tmp_path / "model"
    shutil.copytree(tiny_folder("opt"), model)
    (model / "excise.json").write_text('{"relevance": {"prompt_hashes": null}, "more": [1]}')
    assert excise("eval", model, *toxicity).exit_code == 0
    (model / "excise.json").write_text('{"relevance": {')
    damaged = excise("eval", model, *toxicity)
    assert damaged.exit_code == 1
    assert damaged.stderr.splitlines()[-1].startswith(f"excise: {model / 'excise.json'} is no JSON")
    unknown = excise("eval", tiny_folder("opt"), *toxicity, "--attribution", tiny_folder("opt"))
    assert unknown.exit_code == 1  # nothing could be noticed
    assert f"{tiny_folder('opt')} does not say which prompts" in unknown.stderr


def test_text_that_chose_the_edit_is_known_again(
    excise: Run, tiny_folder: Folder, tmp_path: Path, text_file: Path
):
    relevance, other = tmp_path / "relevance", tmp_path / "other.txt"
    source = ("--text", text_file, "--samples", 2, "--length", 16, "-o", relevance)
    assert excise("score", tiny_folder("opt"), *source).exit_code == 0
    measured = ("eval", tiny_folder("opt"), "--attribution", relevance, "--window", 16)
    again = excise(*measured, "--perplexity", text_file, "--protocol", "document")
    assert "warning: 1 texts of perplexity chose the edit" in again.stderr
    other.write_text("and then it was not there , the cat sat on mat . " * 9)
    fresh = excise(*measured, "--perplexity", other)
    assert (fresh.exit_code, "warning" in fresh.stderr) == (0, False)


# --- tasks of lm-eval ---


TASK = """\
task: tiny_quiz
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/quiz.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_local_task(
    excise: Run, tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lm_eval")
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"question": q, "choices": ["cat", "mat"], "gold": i % 2} for i, q in enumerate(PROMPTS)
    ]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "quiz.yaml").write_text(TASK.format(folder=folder))
    task = ("--zero-shot", "tiny_quiz", "--zero-shot-folder", folder, "--json")
    models = tiny_folder("opt"), tiny_folder("opt-350m")
    found = json.loads(excise("eval", *models, *task).stdout)
    assert found["zero_shot"]["tiny_quiz"]["n"] == 9
    assert found["results"]["tiny_quiz"]["acc,none"] == found["zero_shot"]["tiny_quiz"]["value"]
    assert found["configs"]["tiny_quiz"]["output_type"] == "multiple_choice"
    assert "zero_shot.tiny_quiz" in found["comparisons"][0]["changes"]
    few = json.loads(excise("eval", models[0], *task, "--zero-shot-limit", 4).stdout)
    assert few["n-samples"]["tiny_quiz"]["effective"] == few["zero_shot"]["tiny_quiz"]["n"] == 4
    unknown = excise("eval", models[0], "--zero-shot", "tiny_quz", "--zero-shot-folder", folder)
    assert unknown.exit_code == 1
    assert "tiny_quz" in unknown.stderr.splitlines()[-1]
