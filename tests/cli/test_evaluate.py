"""`excise eval` on tiny models: every option, what is printed and written, exit codes."""

import json
import math
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from excise.cli.evaluate import command
from excise.tasks.ioi import ioi_prompts
from safetensors.torch import load_file, save_file


Run = Callable[..., Result]
Folder = Callable[[str], Path]

both = pytest.mark.parametrize("kind", ["llama-untied", "opt"])


@pytest.fixture
def data(tmp_path: Path, tiny_tokenizer: Any, text_file: Path) -> dict[str, str]:
    """Return files that a user would have, by name."""
    files = {
        "prompts.txt": "\n".join(prompt.clean for prompt in ioi_prompts(tiny_tokenizer, 12)),
        "list.txt": "cat\nbook\nJohn\n",
        "other.txt": "mat\nthe\n",
        "met.yaml": "min_samples: 2\nrare: 100 %\nperplexity: {max: 1000000}\n",
        "broken.yaml": "min_samples: 2\nrare: 100 %\nperplexity: {max: 1.5}\n",
    }
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name.replace(".txt", ""): str(folder / name) for name in files} | {
        "text": str(text_file)
    }


@pytest.fixture
def edited(tmp_path: Path, tiny_folder: Folder) -> Callable[..., Path]:
    """Return `edited(kind, name, by)`, a copy of a tiny model with one weight changed."""

    def make(kind: str, name: str = "edited", by: float = 0.5) -> Path:
        shutil.copytree(tiny_folder(kind), tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        weight = next(w for key, w in sorted(tensors.items()) if "layers.1" in key and w.ndim == 2)
        weight.view(-1)[:64] += by
        save_file(tensors, file, metadata={"format": "pt"})
        return tmp_path / name

    return make


def toxicity(data: dict[str, str]) -> tuple[Any, ...]:
    scorer = f"words:{data['list']}"
    return ("--toxicity", data["prompts"], "--scorer", scorer, "--completions", 3, "--new-tokens",
            5, "--temperature", 2.0)  # fmt: skip


def perplexity(data: dict[str, str]) -> tuple[Any, ...]:
    return "--perplexity", data["text"], "--window", 32


def printed(result: Result) -> dict[str, Any]:
    """Return the one JSON object that is all of stdout."""
    assert result.exit_code == 0, result.stderr

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(result.stdout, parse_constant=refuse)


@both
def test_everything_on_one_model(excise: Run, tiny_folder: Folder, data: Any, kind: str):
    model = tiny_folder(kind)
    arguments = ("eval", model, *perplexity(data), *toxicity(data), "--task", "ioi")
    arguments = (*arguments, "--samples", 10, "--repetition")
    found = printed(excise(*arguments, "--json"))
    assert (found["model"], found["kind"]) == (str(model), "evaluation")
    assert found["comparisons"] == found["gates"] == []
    measured = found["perplexity"]
    assert measured["statistic"] == "token_perplexity"
    assert measured["ci"][0] < measured["value"] < measured["ci"][1]
    assert measured["text"] == data["text"]
    assert found["tasks"]["ioi"]["accuracy"]["n"] == 10
    assert 0 <= found["tasks"]["ioi"]["ci"][0] <= found["tasks"]["ioi"]["value"] <= 1
    assert found["toxicity"]["n"] == 12
    assert found["toxicity"]["completions"] == 36
    assert found["toxicity"]["scorer"] == f"words:{data['list']}"
    assert "3 samples, 5 new tokens, temperature 2, top-p 0.9, seed 0" in found["toxicity"][
        "protocol"
    ]  # fmt: skip
    assert found["repetition"]["protocol"] == "greedy, 50 new tokens"
    again = printed(excise(*arguments, "--json", "--no-cache"))  # equal seeds, equal numbers
    for record in (found, again):
        record.pop("environment")
        record["models"][0].pop("environment")
    assert again == found
    text = excise(*arguments)
    assert text.exit_code == 0
    assert "tasks.ioi logit_difference" in text.stdout
    assert f"perplexity: {measured['protocol']}" in text.stdout
    assert f"note: What the judge cannot see: {found['toxicity']['limits']}" in text.stdout
    assert text.stderr.startswith(f"{model}: units: perplexity ")


@both
def test_several_models(
    excise: Run, tiny_folder: Folder, edited: Callable[..., Path], data: Any, kind: str
):
    models = [tiny_folder(kind), edited(kind, "mild", 0.2), edited(kind, "wild", 3.0)]
    found = printed(excise("eval", *models, *perplexity(data), *toxicity(data), "--json"))
    assert [record["model"] for record in found["models"]] == list(map(str, models))
    assert len({record["model_hash"] for record in found["models"]}) == 3
    values = [record["perplexity"]["value"] for record in found["models"]]
    for after, comparison in zip(values[1:], found["comparisons"], strict=True):
        change = comparison["changes"]["perplexity"]["token_perplexity"]
        assert change["difference"]["value"] == pytest.approx(after - values[0])
        assert change["difference"]["value"] != 0
        assert change["better"] + change["worse"] == change["difference"]["n"]
    alone = printed(excise("eval", models[2], *perplexity(data), "--json", "--no-cache"))
    assert alone["perplexity"]["value"] == pytest.approx(values[2])
    text = excise("eval", *models, *perplexity(data)).stdout
    assert text.count(f"against {models[0]}") == 2


def test_what_is_written(
    excise: Run, tiny_folder: Folder, edited: Callable[..., Path], data: Any, tmp_path: Path
):
    models, out = [tiny_folder("opt"), edited("opt")], tmp_path / "deep" / "out"
    arguments = ("eval", *models, *perplexity(data), *toxicity(data))
    arguments = (*arguments, "--scorer", f"words:{data['other']}", "-o", out)
    result = excise(*arguments, "--json")
    report = printed(result)
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    heads = {"config.json", "report.html", "report.json", "report.md"}
    units = {file for file in files if file.startswith("units/")}
    assert files == heads | units
    assert len(units) == 2 * 3
    assert json.loads((out / "report.json").read_text()) == report
    config = json.loads((out / "config.json").read_text())
    assert config["kind"] == "evaluation"
    assert config["models"] == list(map(str, models))
    for number, model in enumerate(models, 1):
        rows = (out / "units" / str(number) / "toxicity.jsonl").read_text().splitlines()
        values = [json.loads(row) for row in rows]
        keys = {"model", "unit", "maximum", "any", "mean", "fraction"}
        assert all(row.keys() == keys and row["model"] == str(model) for row in values)
        mean = sum(row["maximum"] for row in values) / len(values)
        assert mean == pytest.approx(report["models"][number - 1]["toxicity"]["value"])
        judges = report["models"][number - 1]["toxicity"]["judges"]
        assert list(judges) == [f"words:{data['other']}"]
    assert (out / "report.md").read_text().startswith(f"# Evaluation of {models[0]}, {models[1]}")
    assert "<svg" in (out / "report.html").read_text()
    assert excise(*arguments).exit_code == 1  # the folder is taken
    again = excise(*arguments, "--overwrite", "--gate", data["met.yaml"])
    assert again.exit_code == 0
    assert f"written to {out}" in again.stdout
    suites = ET.fromstring((out / "junit.xml").read_text())
    assert [case.get("name") for case in suites.iter("testcase")] == [
        "edited",
        "perplexity.max",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_texts_are_written_only_when_asked(
    excise: Run, tiny_folder: Folder, edited: Callable[..., Path], data: Any, tmp_path: Path
):
    words = {word for p in ("list", "other") for word in Path(data[p]).read_text().split()}
    models = (tiny_folder("llama-untied"), edited("llama-untied"))
    arguments = ("eval", *models, *toxicity(data))
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    assert excise(*arguments, "-o", shown, "--show-text").exit_code == 0
    result = excise(*arguments, "-o", hidden, "--json")
    rows = (shown / "units" / "1" / "toxicity.jsonl").read_text().splitlines()
    worst = [json.loads(row)["most toxic completion"] for row in rows]
    assert any(words & set(text.split()) for text in worst)
    quoted = [text for text in worst if text.count(" ") > 1]
    assert quoted
    everything = "".join(p.read_text() for p in hidden.rglob("*") if p.is_file()) + result.output
    assert not [text for text in quoted if text in everything]
    assert "most toxic completion" not in (hidden / "units" / "1" / "toxicity.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "n", "said"),
    [
        (["--limit", 3], 3, "window=32"),
        (["--protocol", "stride"], None, "stride 16"),
        (["--protocol", "document"], 1, "rolling"),
        (["--dtype", "float64"], None, "window=32"),
        (["--device", "cpu"], None, "window=32"),
        (["--batch-size", 1], None, "window=32"),
    ],
)
def test_options_of_perplexity(
    excise: Run, tiny_folder: Folder, data: Any, options: list[Any], n: int | None, said: str
):
    arguments = ("eval", tiny_folder("opt"), *perplexity(data), "--json")
    plain, found = printed(excise(*arguments)), printed(excise(*arguments, *options))
    assert said in found["perplexity"]["protocol"]
    assert found["perplexity"]["n"] == (n or found["perplexity"]["n"])
    same = not {"--limit", "--protocol"} & set(options)
    close = math.isclose(found["perplexity"]["value"], plain["perplexity"]["value"], rel_tol=1e-4)
    assert close is same


@pytest.mark.parametrize(
    ("options", "key", "value", "said"),
    [
        (["--completions", 0], "completions", 12, "greedy, 5 new tokens;"),
        (["--completions", 2], "completions", 24, "2 samples, 5 new tokens,"),
        (["--max-prompts", 4], "n", 4, "seed 0"),
        (["--threshold", 0.75], "threshold", 0.75, "threshold 0.75"),
        (["--max-empty", 1], "n", 12, "3 samples"),
        (["--new-tokens", 9, "--seed", 5], "n", 12, "3 samples, 9 new tokens, temperature 2,"),
        (["--top-p", 0.5, "--batch-size", 5], "n", 12, "top-p 0.5, seed 0"),
    ],
)
def test_options_of_toxicity(
    excise: Run, tiny_folder: Folder, data: Any, options: list[Any], key: str, value: Any, said: str
):
    arguments = ("eval", tiny_folder("llama-untied"), *toxicity(data))
    found = printed(excise(*arguments, *options, "--json"))["toxicity"]
    assert found[key] == value
    assert said in found["protocol"]


def test_tasks_are_measured_on_their_test_split(excise: Run, tiny_folder: Folder):
    """The audit's M10 (a): score and circuit find on train, whose frames must not come again."""
    found = {}
    for split in ((), ("--split", "train"), ("--split", "test")):
        done = excise("eval", tiny_folder("opt"), "--task", "ioi", "--samples", 4, *split, "--json")
        found[split[1:]] = json.loads(done.stdout)["tasks"]["ioi"]
    assert found[()]["protocol"].endswith("; prompts of split test")
    assert found[("train",)]["protocol"].endswith("; prompts of split train")
    assert found[()] == found[("test",)] != found[("train",)]


def test_every_option_is_told_and_tried():
    """Options that no test here names are those of loading, which `score` shares."""
    files = Path(__file__), Path(__file__).with_name("test_evaluate_runs.py")
    tried = "".join(file.read_text() for file in files)
    loading = {"--revision", "--device-map", "--load-in-4bit", "--load-in-8bit", "--allow-pickle"}
    for option in command.params:
        if option.opts[0].startswith("-"):
            name = max(option.opts, key=len)
            assert getattr(option, "help", None)
            assert f'"{name}"' in tried or f'"{option.opts[0]}"' in tried or name in loading, name


def test_exit_codes(
    excise: Run, tiny_folder: Folder, edited: Callable[..., Path], data: Any, tmp_path: Path
):
    arguments = ("eval", tiny_folder("opt"), edited("opt"), *perplexity(data))
    assert excise(*arguments, "--gate", data["met.yaml"]).exit_code == 0
    assert excise(*arguments, "--window", 1).exit_code == 1
    assert excise(*arguments, "--window", "long").exit_code == 2
    assert excise(*arguments, "--batch-size", 0).exit_code == 2
    assert excise("eval").exit_code == 2
    missed = excise(*arguments, "--gate", data["broken.yaml"], "-o", tmp_path / "out", "--json")
    assert missed.exit_code == 3
    assert missed.stderr.splitlines()[-1] == (
        f"excise: gate {data['broken.yaml']} not met: perplexity.max"
    )
    report = json.loads(missed.stdout)
    assert [gate["passed"] for gate in report["gates"]] == [False]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "NOT met" in (tmp_path / "out" / "report.md").read_text()
    alone = excise("eval", tiny_folder("opt"), *perplexity(data), "--gate", data["met.yaml"])
    assert alone.exit_code == 0
    assert "gate met" in alone.stdout
