"""Write a model back as a plain HuggingFace folder, with the recipe of its edit beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .json_text import json_text
from .loading import Loaded
from .output import whole_folder
from .reading import read_json


RECIPE = "excise.json"
"""File of the recipe in a model's folder."""
EDITS = "excise-edits"
"""Folder of the edits in an edited model's folder, and of the undo data. Not next to the weights,
since some servers load every `*.safetensors` they find there."""
SEEN = "seen.json"
"""File beside an edit: hashes of all texts that found or chose it."""


class Part(Protocol):
    """An artefact that can be written into a folder."""

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
        recipe: What was done to the model; JSON values.
        overwrite: Whether an existing model folder may be replaced; never the model's own.
        parts: Artefacts to put beside the weights, by the name of their folder.
    """
    with whole_folder(path, overwrite, "model", [loaded.name]) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        (folder / RECIPE).write_text(json_text(recipe, indent=2) + "\n")
        for name, part in (parts or {}).items():
            part.save_pretrained(folder / name)


def read_recipes(folder: str | Path) -> dict[str, Any]:
    """Read what excise wrote about how a folder was made.

    A model's recipe, an artefact's config, what an edit has seen; and the same of the edits that
    are in a model.

    Args:
        folder: Any name; what is no folder has no recipe.

    Returns:
        JSON values by file.

    Raises:
        ExciseError: A file that is no JSON.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    for part in (folder, *sorted(folder.glob(f"{EDITS}/*"))):
        for path in (part / name for name in (RECIPE, "config.json", SEEN)):
            if path.is_file():
                found[str(path.relative_to(folder))] = read_json(path)
    return found
