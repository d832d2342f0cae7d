"""The door: from a model and the name of a task to a circuit, as the command line makes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise import Circuit, ExciseError, find_circuit
from excise.circuits.ablation import Ablator
from excise.circuits.pairs import encode_pairs
from excise.cli.main import group
from excise.core.memory import Forecast
from excise.tasks.registry import task_prompts


Folder = Callable[[str], Path]
QUICK: dict[str, Any] = {"task": "ioi", "samples": 8, "controls": 1, "allow_failing": True}


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_python_and_the_command_line_make_the_same_folder(
    tiny_folder: Folder, tmp_path: Path, kind: str
):
    options = ["--task", "ioi", "--samples", "8", "--controls", "1", "--allow-failing",
               "--size", "4", "-o", str(tmp_path / "cli")]  # fmt: skip
    done = CliRunner().invoke(group, ["circuit", str(tiny_folder(kind)), *options])
    assert done.exit_code == 0, done.output
    find_circuit(tiny_folder(kind), size=4, **QUICK).save_pretrained(tmp_path / "python")
    one, two = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("cli", "python"))
    for config in (one, two):
        config.pop("created")
    assert one == two
    assert one["made_from"]["source"] == "task ioi"
    assert one["prompt_hashes"]
    pages = [(tmp_path / name / "circuit.html").read_text() for name in ("cli", "python")]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "gemma3"])
@pytest.mark.parametrize("level", ["nodes", "kv-groups", "neurons", "weights"])
def test_a_model_runs_with_its_circuit_alone(
    tiny: Callable[..., Any], tiny_tokenizer: Any, kind: str, level: str
):
    model = tiny(kind)
    circuit = find_circuit(
        model, tiny_tokenizer, level=level, size=5, ablation="zero", method="lrp", **QUICK
    )
    pairs = encode_pairs(tiny_tokenizer, task_prompts("ioi", tiny_tokenizer, 3, split="test"))
    kept = circuit.level.kept(circuit.shape, circuit.in_circuit)
    ((batch, expected),) = Ablator(model, pairs, "zero").run(kept)
    inputs = batch.model_inputs(explicit_positions=kind != "opt")
    rows = torch.arange(len(batch))
    with torch.no_grad():
        before = model(**inputs).logits
        with circuit.applied(model) as alone:
            found = alone(**inputs).logits[rows, batch.last]
        assert torch.equal(model(**inputs).logits, before)
    torch.testing.assert_close(found, expected[:, 0])
    assert not torch.allclose(found, before[rows, batch.last])


def test_what_cannot_be_applied_is_refused(tiny: Callable[..., Any], tiny_tokenizer: Any):
    edges = find_circuit(tiny("opt"), tiny_tokenizer, level="edges", size=5, **QUICK)
    with pytest.raises(ExciseError, match="another level"), edges.applied(tiny("opt")):
        pass
    with pytest.raises(ExciseError, match="another shape"), edges.applied(tiny("llama-gqa")):
        pass


def test_prompts_at_hand_and_a_forecast_instead_of_a_run(tiny_opt: Any, tiny_tokenizer: Any):
    told: list[Forecast] = []
    found = find_circuit(
        tiny_opt, tiny_tokenizer, dry_run=True, tell=told.append, batch_size=2, task="ioi"
    )
    assert told == [found]
    assert found.counts["prompts to score"] == 48
    prompts = [
        {"clean": one.clean, "answer": one.answer, "wrong": one.wrong}
        for one in task_prompts("ioi", tiny_tokenizer, 8)
    ]
    circuit = find_circuit(
        tiny_opt, tiny_tokenizer, prompts=prompts, size=3, controls=0, allow_failing=True
    )
    assert isinstance(circuit, Circuit)
    assert (circuit.config["method"], circuit.config["ablation"]) == ("lrp", "zero")
    assert circuit.config["made_from"] == {"source": "prompts given"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give one of `task` and `prompts`"),
        ({"task": "ioi", "prompts": []}, "give one of `task` and `prompts`"),
        ({"task": "ioi", "samples": 0}, "`samples` is 0"),
        ({"task": "ioi", "batch_size": 0}, "`batch_size` is 0"),
        ({"task": "oio"}, "did you mean 'ioi'"),
        ({"task": "ioi", "level": "layers"}, "layers"),
        ({"task": "ioi", "method": "no"}, "method 'no'"),
        ({"prompts": "none.jsonl"}, "no file at none.jsonl"),
        ({"prompts": [{"clean": "a"}], "counterfactual": "swapped"}, "belongs to `task`"),
    ],
)
def test_bad_input_is_named_before_a_model_is_loaded(given: dict[str, Any], said: str):
    with pytest.raises(ExciseError) as error:
        find_circuit("no-such-model-anywhere", **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
