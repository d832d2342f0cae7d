"""Write a model back as a plain HuggingFace folder, with the recipe of its edit beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .files.artefact import read_config
from .files.json_text import json_text
from .files.output import whole_folder
from .loading import Loaded
from .provenance import EDITS, KEY, NOT_TOLD, RECIPE, Seen, record_of, seen_in


class Part(Protocol):
    """An artefact that can be written into a folder, and knows which texts it was made with."""

    @property
    def seen(self) -> Seen:
        """The texts."""
        ...

    def save_pretrained(self, path: str | Path) -> None:
        """Write it."""


def save_model(
    loaded: Loaded,
    path: str | Path,
    recipe: Mapping[str, Any],
    overwrite: bool = False,
    parts: Mapping[str, Part] | None = None,
) -> None:
    """Write a model that stock transformers loads, with the recipe of its edit beside it.

    Args:
        loaded: Model and tokenizer.
        path: The folder to make: weights as safetensors, config, tokenizer, `excise.json`.
        recipe: What was done to the model; JSON values. What was done to it before is added, and
            the texts behind all of it: those of the parts, unknown where there are none.
        overwrite: Whether an existing model folder may be replaced; never the model's own.
        parts: Artefacts to put beside the weights, by the name of their folder.
    """
    recipe = {**recipe, **_made_from(loaded.name), KEY: _seen(loaded.name, parts or {}).to_json()}
    with whole_folder(path, overwrite, "model", [loaded.name]) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        (folder / RECIPE).write_text(json_text(recipe, indent=2) + "\n")
        for name, part in (parts or {}).items():
            part.save_pretrained(folder / name)


def _seen(model: str, parts: Mapping[str, Part]) -> Seen:
    """Return the texts behind a model that was made of another with the help of artefacts."""
    found = seen_in(model) or Seen()
    for part in parts.values():
        found |= part.seen
    return found if parts else found | NOT_TOLD


def _made_from(model: str) -> dict[str, Any]:
    """Return the recipe of the model that is edited now, and of the edits in it, if any."""
    folder = Path(model)
    before = record_of(folder / RECIPE) if model and (folder / RECIPE).is_file() else {}
    edits = {path.name: read_config(path) for path in sorted(folder.glob(f"{EDITS}/*/"))}
    found = {"before": before, "edits": edits if model else {}}
    return {name: part for name, part in found.items() if part}
