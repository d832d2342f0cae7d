"""Write a model back as a plain HuggingFace folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artefact import whole_folder
from .loading import Loaded


def save_model(
    loaded: Loaded, path: str | Path, recipe: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a model that stock transformers loads, with the recipe of its edit beside it.

    Args:
        loaded: Model and tokenizer.
        path: The folder to make: weights as safetensors, config, tokenizer, `excise.json`.
        recipe: What was done to the model; JSON values.
        overwrite: Whether an existing model folder may be replaced.
    """
    with whole_folder(path, overwrite) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        (folder / "excise.json").write_text(json.dumps(recipe, indent=2) + "\n")
