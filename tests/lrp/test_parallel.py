"""Two processes score half of the samples each and agree with one."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from excise import Relevance
from excise.cli.main import group


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_accelerate_launch(kind: str, tiny_folder: Callable[[str], Path], tmp_path: Path):
    folder = tiny_folder(kind)
    prompts = "".join(
        f'{{"clean": "{words}", "answer": "Mary"}}\n'
        for words in ("When Mary and John went to the", "Then John gave", "the store", "Mary and",
                      "John went to the store and Mary")
    )  # fmt: skip
    (tmp_path / "prompts.jsonl").write_text(prompts)
    options = ["score", str(folder), "--prompts", str(tmp_path / "prompts.jsonl"),
               "--weights", "*", "--batch-size", "2"]  # fmt: skip
    group([*options, "-o", str(tmp_path / "one")], standalone_mode=False)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "-m", "excise", *options, "-o", str(tmp_path / "two"),
    ]  # fmt: skip
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Relevance.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one.config["data"] == two.config["data"]
    for name in ("heads", "neurons"):
        a, b = one.samples[name], two.samples[name]
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    assert one.weights.keys() == two.weights.keys()
    for name, weights in one.weights.items():
        assert (weights - two.weights[name]).abs().max() <= 1e-5 * weights.abs().max()
    assert one.tokens is not None
    assert two.tokens is not None
    assert torch.allclose(one.tokens, two.tokens, rtol=1e-5, atol=1e-7)
