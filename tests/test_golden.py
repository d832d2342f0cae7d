"""What a dozen commands compute on tiny models of both families is what it was."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from excise.cli.main import group
from excise.tasks.ioi import ioi_prompts


RECORDED = Path(__file__).with_name("golden.json")


def _golden() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "golden.py"
    spec = importlib.util.spec_from_file_location("golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def files(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """Return a folder of examples, general text and prompts."""
    drawn = {
        "bad.txt": [p.clean for p in ioi_prompts(tiny_tokenizer, 24)],
        "general.txt": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 60, 3, "validation")],
        "text.txt": [p.clean + " ." for p in ioi_prompts(tiny_tokenizer, 90, 4, "test")],
    }
    for name, lines in drawn.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    names = ["Mary", "John", "Tom", "Anna", "James", "Sarah", "Paul", "Emma"]
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for one, other in zip(names, [*names[1:], names[0]], strict=True):
            row = {
                "clean": f"When {one} and {other} sat there , {other} gave it to",
                "counterfactual": f"When {one} and {other} sat there , {one} gave it to",
                "answer": one, "wrong": other,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    with (tmp_path / "david.jsonl").open("w") as file:
        for prompt in ioi_prompts(tiny_tokenizer, 24, 8):
            file.write(json.dumps({"prompt": prompt.clean, "continuation": " David David"}) + "\n")
    return tmp_path


@pytest.fixture
def planted(tiny: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """Return an OPT that always says David, because of neuron 7 of layer 1."""
    folder, model = tmp_path / "planted", tiny("opt")
    word = tiny_tokenizer.convert_tokens_to_ids("David")
    layer = model.model.decoder.layers[1]
    with torch.no_grad():
        direction = model.lm_head.weight[word] * model.model.decoder.final_layer_norm.weight
        layer.fc1.weight[7] *= 0.1
        layer.fc1.bias[7] = 3.0  # always on
        layer.fc2.weight[:, 7] = 4 * direction
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_values_are_as_recorded(
    tiny_folder: Callable[[str], Path],
    files: Path,
    planted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
):
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "cache"))
    golden = _golden()

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(group, list(arguments), catch_exceptions=False)
        assert done.exit_code in (0, 3), done.output
        return done.stdout

    (work := tmp_path / "work").mkdir()
    found = golden.run(invoke, str(tiny_folder(kind)), files, work,
                       planted if kind == "opt" else None)  # fmt: skip
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    if os.environ.get("EXCISE_RECORD"):
        recorded[kind] = golden.rounded(found)
        golden.write(RECORDED, recorded)
    assert set(recorded[kind]) == set(found)
    assert all(found.values()), [name for name, values in found.items() if not values]
    # in float32 the order of sums differs between processors, and updates carry it on
    assert golden.differences(recorded[kind], found, within=1e-4) == []
