"""What pruning returns: the model, what was taken from it, and how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.export import write_model
from ..core.files.output import remove_progress
from ..core.loading import Loaded
from ..core.memory import Forecast
from ..core.provenance import Seen
from .mask import Mask
from .recipe import Recipe


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class PrunedModel:
    """A pruned model. The model is the one that was given: it is pruned in place."""

    loaded: Loaded
    mask: Mask
    """What was kept."""
    recipe: Recipe | None
    """How weights were chosen and updated; None where a relevance or a unit criterion chose."""
    provenance: Mapping[str, Any]
    """What `save_pretrained` writes as `excise.json`: the options, what was done before, and hashes
    of all texts behind it."""
    result: Mapping[str, Any]
    """The part of the provenance that the command line prints."""
    forecast: Forecast
    """What it was expected to need."""
    seconds: float
    """What it took."""
    peak: int
    """Most bytes that the process has held."""
    by: str = ""
    """What chose, in words."""
    progress: Path | None = field(default=None, repr=False)
    """Folder of a resumable run; `save_pretrained` removes it."""

    @property
    def model(self) -> "PreTrainedModel":
        """The pruned model."""
        return self.loaded.model

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self.loaded.tokenizer

    @property
    def seen(self) -> Seen:
        """The texts that chose what was pruned, or the edits before it."""
        return Seen.read(self.provenance, "the model in memory")

    @property
    def sparsity(self) -> float:
        """The share that is pruned, counted."""
        return self.mask.sparsity

    def __str__(self) -> str:
        return f"{self.mask}{self.by}"

    def _repr_html_(self) -> str:
        from ..viz.heatmap import heatmap
        from ..viz.text import escape

        rows, columns = _shares(self.mask)
        picture = heatmap(
            rows, title="Share that is pruned", column_label=columns, value_label="sparsity"
        )
        return f"<p>{escape(str(self))}</p>{picture}"

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Write a model folder that stock transformers loads, with the mask and `excise.json`.

        Raises:
            ExciseError: The path is taken, or cannot be written.
        """
        write_model(self.loaded, path, self.provenance, overwrite, {"mask": self.mask})
        remove_progress(self.progress)


@dataclass(frozen=True)
class PruningForecast(Forecast):
    """What pruning will need, and what it will take from the model."""

    result: Mapping[str, Any] = field(default_factory=dict)
    """As `PrunedModel.result`, as far as it is known before."""
    words: str = ""
    """The same in words."""


def _shares(mask: Mask) -> tuple[list[list[float]], str]:
    """Return the pruned share by layer, of each matrix or unit, and what a column is."""
    if mask.component == "layers":
        return [[float(not kept)] for kept in mask.keep["layers"].tolist()], "layer"
    if mask.component != "weights":
        return (~mask.keep[mask.component]).float().tolist(), mask.component[:-1]
    rows: dict[str, list[float]] = {}
    for name, keep in mask.keep.items():
        layer = next((part for part in name.split(".") if part.isdigit()), "0")
        rows.setdefault(layer, []).append(1 - float(keep.float().mean()))
    return list(rows.values()), "matrix"
