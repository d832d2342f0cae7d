"""Ctrl-C: one line, exit code 130, no half-written folder; `--resume` loses nothing."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.lrp.relevance import Relevance


Folder = Callable[[str], Path]

INTERRUPTED = """
import os, signal, sys
from excise.cli.main import main
from excise.lrp.fitter import RelevanceFitter

update = RelevanceFitter.update

def interrupted_in_the_middle(self, batch):
    if self.n_samples == 7:
        os.kill(os.getpid(), signal.SIGINT)
    update(self, batch)

RelevanceFitter.update = interrupted_in_the_middle
main()
"""
"""A run that gets a SIGINT at the eighth sample, which it finishes: no timing involved."""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let children hear Ctrl-C, which a shell's background jobs and their children ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def arguments(model: Path, out: Path, samples: int, *more: str) -> list[str]:
    data = ["--task", "ioi", "--samples", str(samples), "--batch-size", "1", "--weights", "*"]
    return ["score", str(model), *data, "-o", str(out), *more]


def test_a_signal_from_outside(tiny_folder: Folder, tmp_path: Path):
    command = [sys.executable, "-m", "excise"]
    command += arguments(tiny_folder("llama-gqa"), tmp_path / "out", 20_000)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("20,000 samples, ")  # so it has begun
    process.send_signal(signal.SIGINT)
    (line,) = process.stderr.read().splitlines()
    assert line.startswith("excise: interrupted")
    assert process.wait(30) == 130
    process.stderr.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_resume(tiny_folder: Folder, tmp_path: Path, excise: Callable[..., Any], kind: str):
    out, progress, model = tmp_path / "out", tmp_path / ".out.progress", tiny_folder(kind)
    command = [sys.executable, "-c", INTERRUPTED, *arguments(model, out, 12, "--resume")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert "excise: interrupted; 8 of 12 samples are kept in" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [progress]
    assert json.loads((progress / "scores" / "config.json").read_text())["n_samples"] == 8

    other = excise(*arguments(model, out, 12, "--resume", "--aggregate", "abs"))
    assert other.exit_code == 1
    assert str(progress) in other.stderr

    changed = excise(*arguments(tiny_folder("llama-mha"), out, 12, "--resume"))
    assert changed.exit_code == 1
    assert "another run, with other architecture, model" in changed.stderr

    assert excise(*arguments(model, out, 12, "--resume")).exit_code == 0
    assert list(tmp_path.iterdir()) == [out]
    assert excise(*arguments(model, tmp_path / "whole", 12)).exit_code == 0
    resumed, whole = (Relevance.from_pretrained(tmp_path / name) for name in ("out", "whole"))
    for name in ("heads", "neurons", "tokens", "token_ids"):
        assert torch.allclose(resumed.get(name), whole.get(name), atol=1e-6), name
    for group in ("weights", "samples"):
        found, expected = getattr(resumed, group), getattr(whole, group)
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    for key in ("n_samples", "data", "mean_value", "position_relevance", "relevance_by_layer"):
        assert resumed.config[key] == pytest.approx(whole.config[key]), key
