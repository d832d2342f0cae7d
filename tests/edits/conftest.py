"""Checkpoints on disk in all the shapes they come in, and edits of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


SHAPES = {
    "float32": (torch.float32, "1GB"),
    "bfloat16": (torch.bfloat16, "1GB"),
    "float16-sharded": (torch.float16, "12KB"),
    "float32-sharded": (torch.float32, "20KB"),
}


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Any], tiny_tokenizer: Any
) -> Callable[..., Path]:
    """Return `checkpoint(kind, shape="float32", seed=0)`, a folder to read and never to change."""
    folders: dict[Any, Path] = {}

    def folder(kind: str, shape: str = "float32", seed: int = 0) -> Path:
        key = (kind, shape, seed)
        if key not in folders:
            path = tmp_path_factory.mktemp("checkpoints") / f"{kind}-{shape}-{seed}"
            dtype, size = SHAPES[shape]
            tiny(kind, seed).to(dtype).save_pretrained(path, max_shard_size=size)
            if kind != "qwen2":
                tiny_tokenizer.save_pretrained(path)
            folders[key] = path
        return folders[key]

    return folder


@pytest.fixture(scope="session")
def changed() -> Callable[..., None]:
    """Return `changed(folder, tensor, value=1e-3, at=-1)`, which adds to one number."""
    from safetensors.torch import load_file, save_file

    def change(folder: Path, name: str, value: float = 1e-3, at: int = -1) -> None:
        """Add to one number of a checkpoint."""
        (file,) = [f for f in folder.glob("*.safetensors") if name in load_file(f)]
        stored = load_file(file)
        stored[name].view(-1)[at] += value
        save_file(stored, file, {"format": "pt"})

    return change
