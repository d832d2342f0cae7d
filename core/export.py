"""Write a model back as a plain HuggingFace folder, with the recipe of its edit beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from .files.artefact import read_config
from .files.json_text import json_text
from .files.output import whole_folder
from .loading import Loaded
from .provenance import EDITS, KEY, NOT_TOLD, RECIPE, Seen, record_of, seen_in


_NOTE = "excise_record"
"""Attribute of a model in memory that says what was done to it."""


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
    write_model(loaded, path, record(loaded, recipe, parts or {}), overwrite, parts)


def record(loaded: Loaded, recipe: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """Return all that is known of how an edited model came about.

    Args:
        loaded: The model: the folder it is from says what was done to it before, and it says itself
            what was done to it since, in this process (see `note`).
        recipe: What is done to it now.
        parts: Artefacts that say which texts they were made with.
    """
    noted: dict[str, Any] | None = vars(loaded.model).get(_NOTE)
    before = _made_from(loaded.name) if noted is None else {"before": noted}
    found = seen_in(loaded.name) if noted is None else Seen.read(noted, "the model in memory")
    for part in parts.values():
        found = part.seen if found is None else found | part.seen
    seen = found if parts and found else (found or Seen()) | NOT_TOLD
    return {**recipe, **before, KEY: seen.to_json()}


def note(loaded: Loaded, made: Mapping[str, Any]) -> None:
    """Have a model that was changed in place remember it, for what is done to it next."""
    setattr(loaded.model, _NOTE, dict(made))


def write_model(
    loaded: Loaded,
    path: str | Path,
    made: Mapping[str, Any],
    overwrite: bool = False,
    parts: Mapping[str, Part] | None = None,
) -> None:
    """Write a model as `save_model` does, given its whole `record`."""
    with whole_folder(path, overwrite, "model", [loaded.name]) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        (folder / RECIPE).write_text(json_text(made, indent=2) + "\n")
        for name, part in (parts or {}).items():
            part.save_pretrained(folder / name)


def _made_from(model: str) -> dict[str, Any]:
    """Return the recipe of the model that is edited now, and of the edits in it, if any."""
    folder = Path(model)
    before = record_of(folder / RECIPE) if model and (folder / RECIPE).is_file() else {}
    edits = {path.name: read_config(path) for path in sorted(folder.glob(f"{EDITS}/*/"))}
    found = {"before": before, "edits": edits if model else {}}
    return {name: part for name, part in found.items() if part}
