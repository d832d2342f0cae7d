"""Progress of a pruning run on disk: one file per finished layer."""

import json
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.errors import ExciseError, first_line
from ..core.files.output import remove_progress
from ..core.files.progress import check_same, digests
from ..core.files.reading import read_json


class Progress:
    """Where an interrupted run goes on; without a folder nothing is kept.

    Files are written under another name and renamed, so a killed run leaves none by halves.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)

    def check(self, asked: Mapping[str, Any]) -> None:
        """Begin, or go on with the same run.

        Args:
            asked: All that it depends on; see `core.progress.digests`.

        Raises:
            ExciseError: The folder holds the progress of another run.
        """
        assert self.folder is not None
        written, own, found = self.folder / "recipe.json", digests(asked), None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = written.with_suffix(".part")
            fresh = {path.name for path in self.folder.iterdir()} <= {partial.name}
            if fresh:
                partial.write_text(json.dumps(own))
                partial.rename(written)
            elif written.is_file():
                found = read_json(written)
        except OSError as error:
            raise ExciseError(f"no progress can be kept in {self.folder}: {error}") from error
        check_same(self.folder, own if fresh else found, own)

    def has_layer(self, step: int, index: int) -> bool:
        """Whether this layer was finished."""
        return self.folder is not None and self._layer(step, index).is_file()

    def load_layer(
        self,
        step: int,
        index: int,
        linears: Mapping[str, nn.Linear],
        kept: MutableMapping[str, Tensor],
    ) -> None:
        """Put a finished layer's weights into the model, and its masks into `kept`."""
        tensors = self._read(self._layer(step, index))
        for path, linear in linears.items():
            linear.weight.data.copy_(tensors[path])
            kept[path] = tensors[f"{path}.keep"]

    def save_layer(
        self, step: int, index: int, linears: Mapping[str, nn.Linear], kept: Mapping[str, Tensor]
    ) -> None:
        """Keep a finished layer."""
        if self.folder is None:
            return
        tensors = {path: linear.weight.detach() for path, linear in linears.items()}
        tensors |= {f"{path}.keep": kept[path] for path in linears}
        self._write(self._layer(step, index), tensors)

    def first_costs(self, costs: dict[str, float]) -> dict[str, float]:
        """Return what a finished run cost when it was finished first, and keep it."""
        if self.folder is None:
            return costs
        written = self.folder / "costs.json"
        if written.is_file():
            return read_json(written)
        partial = written.with_suffix(".part")
        partial.write_text(json.dumps(costs))
        partial.rename(written)
        return costs

    def remove(self) -> None:
        """Remove the folder, once the result is safe."""
        remove_progress(self.folder)

    def _layer(self, step: int, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{step}-layer-{index:03}.safetensors"

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        partial = path.with_suffix(".part")
        try:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, partial)
            partial.rename(path)
        except (OSError, SafetensorError) as error:
            raise ExciseError(f"{path} cannot be written: {first_line(error)}") from error

    def _read(self, path: Path) -> dict[str, Tensor]:
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ExciseError(f"{path} is damaged: remove its folder and begin again") from error
