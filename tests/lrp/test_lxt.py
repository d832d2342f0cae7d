"""Parity with LXT, the reference code of AttnLRP, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise import Sample
from excise.lrp.run import score_samples
from safetensors.torch import load_file, save_file


VARIANTS = {"lrp": "attnlrp", "cp-lrp": "cp-lrp"}
IDS = torch.tensor([[5, 17, 3, 29, 11, 8, 17, 2], [4, 9, 31, 2, 6, 6, 12, 1]])
ANSWERS = torch.tensor([7, 21])


@pytest.fixture(scope="session")
def lxt_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install lxt alone into a folder: its requirements would replace torch's friends."""
    folder = tmp_path_factory.mktemp("lxt")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*pip, "lxt==2.1"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"lxt cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("method", VARIANTS)
def test_equals_lxt(method: str, lxt_path: Path, tiny: Callable[[str], Any], tmp_path: Path):
    model = tiny("llama-gqa")
    model.save_pretrained(tmp_path / "model")
    save_file({"input_ids": IDS, "target_ids": ANSWERS}, tmp_path / "input.safetensors")
    oracle = [
        sys.executable, str(Path(__file__).parent / "lxt_oracle.py"), "model", "input.safetensors",
        "output.safetensors", "--variant", VARIANTS[method], "--dtype", "float64",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(lxt_path)}
    subprocess.run(oracle, cwd=tmp_path, env=env, check=True)
    expected = load_file(tmp_path / "output.safetensors")

    samples = [
        Sample(tuple(ids.tolist()), answer=int(answer))
        for ids, answer in zip(IDS, ANSWERS, strict=True)
    ]
    found = score_samples(model.double(), samples, "logit", method, weights=["*"])

    def check(name: str, tensor: torch.Tensor, reference: torch.Tensor) -> None:
        error = (tensor.double() - reference).abs().max() / (reference.abs().max() or 1.0)
        assert error <= 1e-6, (name, error)

    assert found.tokens is not None
    check("tokens", found.tokens, expected["embedding"].sum(-1))
    heads = model.config.num_attention_heads
    for layer in range(model.config.num_hidden_layers):
        check("neurons", found.samples["neurons"][:, layer], expected[f"mlp/{layer}"].sum(1))
        reference = expected[f"heads/{layer}"].sum(1).unflatten(-1, (heads, -1)).sum(-1)
        check("heads", found.samples["heads"][:, layer], reference)
    for name, weights in found.weights.items():
        check(name, weights * len(samples), expected[f"weights/{name}"])
