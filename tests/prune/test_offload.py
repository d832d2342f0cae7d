"""Pruning a model whose weights lie on disk: the same result, with less in memory."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.data import Sample
from excise.core.export import save_model
from excise.core.loading import load_model
from excise.core.memory import on_disk
from excise.prune.forecast import forecast_pruning
from excise.prune.recipe import Recipe, get_recipe
from excise.prune.run import _on, prune_weights
from torch import nn


SAMPLES = [Sample(tuple(range(3, 3 + n))) for n in (9, 7, 12)]


@pytest.mark.parametrize(
    "recipe", [Recipe(), get_recipe("sparsegpt"), get_recipe("best", tune=1, rescore=1)], ids=str
)
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_bit_by_bit_the_same(
    kind: str, recipe: Recipe, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    """Weights, masks, and the files that are written."""
    found = []
    for folder in (None, tmp_path):
        loaded = load_model(str(tiny_folder(kind)), offload=folder)
        size = on_disk(loaded.model)
        expected = forecast_pruning(loaded.model, SAMPLES, recipe, speed=1e9)
        assert expected.parts["weights on disk, not counted"] == size
        pruned = prune_weights(loaded.model, SAMPLES, recipe)
        assert on_disk(loaded.model) == size  # all of them still
        out = tmp_path / str(bool(folder))
        save_model(loaded, out, {"verb": "prune"}, parts={"mask": pruned.mask})
        found.append(out)
    for name in ("model.safetensors", "mask/mask.safetensors"):
        assert (found[0] / name).read_bytes() == (found[1] / name).read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(found)


def test_an_interrupted_run_goes_on(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from excise.prune.progress import Progress

    name, save = str(tiny_folder("opt")), Progress.save_layer
    whole = load_model(name).model
    prune_weights(whole, SAMPLES, Recipe())

    def stop(self: Any, *given: Any) -> None:
        save(self, *given)
        raise KeyboardInterrupt

    model = load_model(name, offload=tmp_path).model
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save_layer", stop)
        with pytest.raises(KeyboardInterrupt, match="repeat the command"):
            prune_weights(model, SAMPLES, Recipe(), resume=tmp_path / "p")
    model = load_model(name, offload=tmp_path).model
    prune_weights(model, SAMPLES, Recipe(), resume=tmp_path / "p")
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_layers_come_back_to_their_files():
    class Elsewhere(nn.Linear):
        """Goes to a device as far as one CPU can."""

        def to(self, *given: Any, **_named: Any) -> Any:
            if given == ("elsewhere",):
                self.weight.data = self.weight.data.clone()
            return self

    layer = Elsewhere(3, 2)
    home = layer.weight.data
    with _on(layer, "elsewhere"):
        assert layer.weight.data_ptr() != home.data_ptr()
        layer.weight.data.fill_(7.0)
    assert layer.weight.data_ptr() == home.data_ptr()
    assert home.tolist() == [[7.0] * 3] * 2


MEASURE = """
import sys
import torch
from excise.core.data import Sample
from excise.core.loading import load_model
from excise.core.memory import unpageable, watched
from excise.prune.recipe import Recipe
from excise.prune.run import prune_weights

samples = [Sample(tuple(range(3, 35)))] * 2
load_model(sys.argv[1])  # what is imported on the way should not count
for folder in (sys.argv[2], None):
    with watched(0.001, unpageable) as held:
        model = load_model(sys.argv[1], offload=folder).model
        prune_weights(model, samples, Recipe())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1)  # also what pruning does not touch
        size = sum(parameter.nbytes for parameter in model.parameters())
    print(held.added, size)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells")
def test_the_model_takes_no_memory(tiny_tokenizer: Any, tmp_path: Path):
    """In a process of its own, whose allocator gives everything back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    model, scratch = LlamaForCausalLM(config), tmp_path / "scratch"
    scratch.mkdir()
    for part in (model, tiny_tokenizer):
        part.save_pretrained(tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "model"), str(scratch)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    (offloaded, size), (whole, _) = (map(int, line.split()) for line in run.stdout.splitlines())
    assert size > 100e6
    assert whole > size
    assert whole - offloaded > 0.7 * size  # without it, pages that are not written yet count less
    assert offloaded < 0.4 * size
