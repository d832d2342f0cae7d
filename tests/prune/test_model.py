"""prune_model and shrink_model: from Python what the command line writes, and what it knows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise import ExciseError, prune_model, shrink_model
from excise.cli.main import group
from excise.prune.pruned import PrunedModel, PruningForecast
from transformers import AutoModelForCausalLM, AutoTokenizer


TEXTS = [f"When Mary and John went to the store , John gave {n} to Mary ." for n in "abcdef"] * 6
SMALL: dict[str, Any] = {"calibration": TEXTS, "samples": 4, "length": 16}
DOORS: list[Any] = [(prune_model, {"recipe": "wanda-admm"}), (shrink_model, {"criterion": "flap"})]


def live(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize(("door", "options"), DOORS)
def test_python_writes_what_the_command_line_writes(
    door: Any, options: Any, kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    folder, text = tiny_folder(kind), tmp_path / "text.txt"
    text.write_text(" ".join(TEXTS))
    given = {**options, "calibration": text, "samples": 4, "length": 16}
    pruned = door(folder, sparsity=0.5, **given)
    pruned.save_pretrained(tmp_path / "python")
    words = [f"--{name}={value}" for name, value in given.items()]
    words += ["--components=neurons"] if door is shrink_model else []
    arguments = ["prune", str(folder), "--sparsity=0.5", *words, "-o", str(tmp_path / "cli")]
    done = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    names, own = (
        {path.relative_to(tmp_path / side) for path in (tmp_path / side).rglob("*")}
        for side in ("cli", "python")
    )
    assert names == own
    for name in names:
        if (tmp_path / "cli" / name).is_file() and str(name) != "mask/config.json":  # has the time
            one, other = (tmp_path / side / name for side in ("cli", "python"))
            assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize(("door", "options"), DOORS)
def test_a_dry_run_leaves_the_model_alone(
    door: Any, options: Any, kind: str, tiny_folder: Callable[[str], Path]
):
    model, tokenizer = live(tiny_folder(kind))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    told = door(model, tokenizer, 0.5, dry_run=True, **options, **SMALL)
    assert isinstance(told, PruningForecast)
    assert told.peak > 0
    assert "peak memory about" in str(told)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    pruned = door(model, tokenizer, 0.5, **options, **SMALL)
    assert isinstance(pruned, PrunedModel)
    assert pruned.model is model
    assert pruned.sparsity == pytest.approx(0.5, abs=0.01)
    assert "<svg" in pruned._repr_html_()
    assert "50.00 %" in str(pruned)


def test_what_was_done_in_memory_is_not_forgotten(
    tiny_folder: Callable[[str], Path], tmp_path: Path
):
    """A gate's `held_out` reads this: texts of an edit before the last one are known as well."""
    model, tokenizer = live(tiny_folder("opt"))
    options: dict[str, Any] = {"samples": 2, "length": 16}
    first = prune_model(model, tokenizer, 0.5, recipe="wanda", calibration=TEXTS, **options)
    others = [f"Tom and Anna met {n} in the garden , and Tom left ." for n in "abcdef"] * 6
    second = shrink_model(model, tokenizer, 0.5, calibration=others, criterion="wanda", **options)
    assert isinstance(first, PrunedModel)
    assert isinstance(second, PrunedModel)
    second.save_pretrained(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "excise.json").read_text())
    assert record["before"] == json.loads(json.dumps(first.provenance))
    assert set(first.provenance["prompt_hashes"]) < set(record["prompt_hashes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": 3}, "`model` is 3, a int"),
        ({"tokenizer": None}, "comes without a tokenizer"),
        ({"sparsity": 1.5}, "sparsity is 1.5"),
        ({"sparsity": None}, "`sparsity`"),
        ({"calibration": []}, "`calibration` is"),
        ({"calibration": "no.txt"}, "no.txt"),
        ({"samples": 0}, "at least 1 sample"),
    ],
)
@pytest.mark.parametrize(("door", "options"), DOORS)
def test_bad_input_changes_nothing(
    door: Any, options: Any, arguments: Any, said: str, tiny_folder: Callable[[str], Path]
):
    model, tokenizer = live(tiny_folder("opt"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = {"model": model, "tokenizer": tokenizer, "sparsity": 0.5, **options, **SMALL}
    with pytest.raises(ExciseError, match=said):
        door(**{**given, **arguments})
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_field_that_no_recipe_has(tiny_folder: Callable[[str], Path]):
    with pytest.raises(ExciseError, match="did you mean 'scope'"):
        prune_model(tiny_folder("opt"), sparsity=0.5, scop="row")
