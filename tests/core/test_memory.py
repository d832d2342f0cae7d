"""What a process holds, counted."""

from pathlib import Path
from typing import Any

import torch
from excise.core.loading import load_model
from excise.core.memory import held_with, on_disk, resident, unpageable, watched


def test_weights_that_were_not_read_yet_count(tiny_tokenizer: Any, tmp_path: Path):
    """Loaders map files: what they give takes no memory until it is used."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1 << 16, hidden_size=256, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    for part in (LlamaForCausalLM(config), tiny_tokenizer):
        part.save_pretrained(tmp_path)
    before = resident()
    model = load_model(str(tmp_path)).model
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 64 << 20
    held = held_with(model)
    assert held > before + 0.9 * size
    for parameter in model.parameters():
        float(parameter.detach().sum())
    assert abs(resident() - held) < 0.1 * size  # nothing was left to read


def test_what_lies_in_files_can_go(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"0" * (64 << 20))
    with watched(count=unpageable) as held:
        mapped = torch.from_file(str(path), shared=True, size=16 << 20)
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(mapped)
        assert float(mapped.sum()) > 0
    if unpageable() < resident():  # only Linux tells
        assert held.added < 16 << 20
    assert on_disk(module) == 64 << 20
    assert held_with(module) < resident() or unpageable() == resident()
