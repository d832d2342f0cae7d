"""A checkpoint on disk, tensor by tensor: where each is, its hash, its bytes; never all at once."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import ExciseError, UnsupportedModelError, first_line, shown
from ..core.families import FAMILIES
from ..core.files.artefact import damage, read_config
from ..core.files.reading import parse_json, shard_names
from ..core.files.schema import check
from ..core.loading import CONFIG
from .changes import Layout


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""What can be scaled, by safetensors' word for it."""

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Stored:
    """Where a tensor's bytes are."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Bytes from the beginning of the file."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """The safetensors files that transformers would load from a folder."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    """By name in the files, in the order of the names."""

    @classmethod
    def of(cls, folder: str | Path) -> "Checkpoint":
        """Read the headers.

        Raises:
            ExciseError: No model folder, no safetensors in it, or damaged ones.
        """
        folder = Path(folder)
        config = read_config(folder)
        if kind := config.get("kind"):
            raise ExciseError(
                f"{folder} is an artefact of excise ({shown(kind)[1:-1]}): give a model folder"
            )
        with damage(folder):
            check(config, CONFIG, "config.json")
        tensors: dict[str, Stored] = {}
        for file in _files(folder):
            for name, stored in _header(folder / file).items():
                if name in tensors:
                    raise ExciseError(
                        f"{folder} has {name} in both {tensors[name].file} and {file}: "
                        "save the model again"
                    )
                tensors[name] = stored
        return cls(folder, config, dict(sorted(tensors.items())))

    @property
    def files(self) -> set[str]:
        """The names of the files with tensors."""
        return {stored.file for stored in self.tensors.values()}

    @property
    def prefix(self) -> str:
        """What a live model's names have in front of the names here; most often nothing.

        Checkpoints saved from the stack without language-model head lack `model.`.
        """
        stacks = f"{self._family().body}.layers."
        return "" if any(name.startswith(stacks) for name in self.tensors) else "model."

    def layout(self, heads: bool) -> Layout:
        """Return where the parts of the layers are.

        Args:
            heads: Whether heads are asked for; if not, their size is not looked up.

        Raises:
            UnsupportedModelError: No supported family.
            ExciseError: A config that does not say how large a head is.
        """
        family, prefix = self._family(), self.prefix
        shapes = {prefix + name: stored.shape for name, stored in self.tensors.items()}
        stack, last = f"{family.body}.layers.", f".{family.mlp_out}.weight"
        n_layers = sum(name.startswith(stack) and name.endswith(last) for name in shapes)
        return Layout(family, n_layers, self._head_dim() if heads else 1, shapes)

    def sha256(self, name: str) -> str:
        """Hash a tensor's bytes, a block at a time."""
        stored, total, left = self.tensors[name], hashlib.sha256(), self.tensors[name].size
        buffer = memoryview(bytearray(min(_BLOCK, stored.size)))
        with (self.folder / stored.file).open("rb", buffering=0) as file:
            file.seek(stored.start)
            while left:
                n = file.readinto(buffer[:left])
                if not n:
                    raise ExciseError(f"{self.folder / stored.file} ends early: get it again")
                total.update(buffer[:n])
                left -= n
        return total.hexdigest()

    def read(self, name: str) -> Tensor:
        """Read one tensor, flat, into memory of its own.

        Raises:
            ExciseError: It is quantised.
        """
        stored = self.tensors[name]
        if stored.dtype not in DTYPES:
            raise ExciseError(
                f"{name} is stored as {stored.dtype}: edit the checkpoint before it is quantised"
            )
        with (self.folder / stored.file).open("rb") as file:
            file.seek(stored.start)
            if not stored.size:
                return torch.empty(0, dtype=DTYPES[stored.dtype])
            return torch.frombuffer(bytearray(file.read(stored.size)), dtype=DTYPES[stored.dtype])

    def write(self, name: str, values: Tensor, folder: Path) -> None:
        """Write a tensor's bytes into a copy of its file in another folder."""
        stored = self.tensors[name]
        with (folder / stored.file).open("r+b") as file:
            file.seek(stored.start)
            file.write(as_bytes(values))

    def line(self, name: str, sha256: str) -> str:
        """Return the line that stands for a tensor in the digest of a checkpoint."""
        stored = self.tensors[name]
        shape = "x".join(map(str, stored.shape))
        return f"{name} {stored.dtype} {shape} {sha256}\n"

    def _family(self) -> Any:
        model_type = self.config.get("model_type")
        if model_type not in FAMILIES:
            raise UnsupportedModelError(
                f"model type {model_type!r} of {self.folder} is not supported; "
                f"supported are {', '.join(sorted(FAMILIES))}"
            )
        return FAMILIES[model_type]

    def _head_dim(self) -> int:
        if isinstance(size := self.config.get("head_dim"), int) and size > 0:
            return size
        from transformers import AutoConfig  # knows the defaults of a family; a slow import

        try:
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
            return getattr(config, "head_dim", None) or (
                config.hidden_size // config.num_attention_heads
            )
        except Exception as error:  # of a file that others wrote, and of any class
            raise ExciseError(
                f"the config of {self.folder} cannot be read: {first_line(error)}"
            ) from error


def digest(lines: Mapping[str, str]) -> str:
    """Return the SHA-256 of a checkpoint: of its tensors' lines, in the order of their names."""
    return hashlib.sha256("".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


def fingerprint(line: str) -> str:
    """Return 8 hexadecimal digits that name a tensor where the full hash would be too long."""
    return hashlib.sha256(line.encode()).hexdigest()[:8]


def as_bytes(values: Tensor) -> memoryview:
    """Return the bytes of a tensor on the CPU."""
    return values.contiguous().view(-1).view(torch.uint8).numpy().data


def _files(folder: Path) -> list[str]:
    """Return the names of the files with weights, as transformers would choose them."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ExciseError(f"{folder} has no {WEIGHTS}: load the model and save it as safetensors")
    try:
        return shard_names(folder / INDEX)
    except ExciseError as error:
        raise ExciseError(f"{folder / INDEX} is damaged ({error}): get it again") from error


def _header(path: Path) -> dict[str, Stored]:
    """Read which tensors a file holds, after safetensors itself has checked it."""
    try:
        with safe_open(path, "pt"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(length), str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise ExciseError(f"{path} is missing or damaged ({error}): get it again") from error
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            found[name] = Stored(path.name, entry["dtype"], shape, 8 + length + begin, end - begin)
    return found
