"""A model whose weights lie in files: the kernel pages them in and out, nothing else changes.

Every parameter is a tensor over a file that is mapped into memory and shared: reading it reads the
file, changing it changes the file, and pages that nobody needs go back to the disk when memory is
short. To everything that uses the model it is a model on the CPU.

The files have no names any more once they are mapped, so the system frees them with the process,
however it ends.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ExciseError
from .files.output import scratch_folder
from .files.reading import shard_names


if TYPE_CHECKING:
    from torch import Tensor, dtype


def load_offloaded(
    source: str, folder: str | Path, dtype: "dtype | None" = None, revision: str | None = None
) -> Any:
    """Load a causal language model with its weights in files, one tensor at a time.

    Args:
        source: A hub id or folder with safetensors.
        folder: A folder on a disk with room for all weights in their precision.
        dtype: Precision; None is the checkpoint's own.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The model, on the CPU.

    Raises:
        ExciseError: No safetensors, no such folder, or no room in it.
        OSError, ValueError, RuntimeError: As `from_pretrained` of transformers.
        SafetensorError: A damaged file.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    shared: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config: Any = AutoConfig.from_pretrained(source, **shared)
    dtype = dtype or config.dtype
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with scratch_folder(folder) as scratch:
        weights: dict[str, Tensor] = {}
        for name, tensor in _tensors(_files(source, revision)):
            if tensor.is_floating_point():
                dtype = dtype or tensor.dtype  # as transformers: the first one decides
                tensor = tensor.to(dtype)
            weights[name] = on_disk(tensor, scratch / "weight")
        mapped = {tensor.data_ptr() for tensor in weights.values()}
        model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
        for parameter in model.parameters():  # what transformers copied or made itself
            if parameter.data_ptr() not in mapped:
                parameter.data = on_disk(parameter.data, scratch / "weight")
    with suppress(OSError):  # not every checkpoint has one
        model.generation_config = GenerationConfig.from_pretrained(source, **shared)
    return model


def on_disk(tensor: "Tensor", path: Path) -> "Tensor":
    """Return a tensor with the same values over a mapped file.

    The file is written before it is mapped: a full disk is an error here, and would be a crash
    where a mapped page finds no room.

    Args:
        tensor: Any, on the CPU.
        path: Name of the file until it is mapped; then it is free again (on Windows, which keeps
            it, another one is taken).

    Raises:
        OSError: The disk is full or refuses.
    """
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    if not flat.numel():
        return tensor  # nothing can be mapped
    while path.exists():
        path = path.with_name(f"{path.name}+")
    with path.open("wb") as file:
        flat.view(torch.uint8).numpy().tofile(file)
    mapped = torch.from_file(str(path), shared=True, size=flat.numel(), dtype=flat.dtype)
    with suppress(PermissionError):
        path.unlink()
    return mapped.view(tensor.shape)


def _files(source: str, revision: str | None) -> list[str]:
    """Return the safetensors of a checkpoint, downloaded if need be."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    options: dict[str, Any] = {
        "revision": revision, "_raise_exceptions_for_missing_entries": False
    }  # fmt: skip
    if whole := cached_file(source, SAFE_WEIGHTS_NAME, **options):
        return [whole]
    if not (index := cached_file(source, SAFE_WEIGHTS_INDEX_NAME, **options)):
        raise ExciseError(f"{source} has no safetensors, which --offload reads: leave it out")
    return [str(cached_file(source, shard, revision=revision)) for shard in shard_names(index)]


def _tensors(files: list[str]) -> Iterator[tuple[str, "Tensor"]]:
    """Read tensors one at a time."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
