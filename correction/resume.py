"""The contrast of a run that was killed, kept beside its output."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..core.artefact import read_artefact, write_artefact
from ..core.errors import ExciseError
from .contrast import Contrast


README = "An unfinished excise run: repeat its command with --resume, or delete this folder.\n"


def kept_contrast(
    folder: Path | None, asked: Mapping[str, Any], make: Callable[[], Contrast]
) -> Contrast:
    """Return the contrast of an earlier run, or make it and keep it.

    Args:
        folder: Where it is kept; None keeps nothing.
        asked: All that it depends on; JSON values.
        make: Makes it.

    Raises:
        ExciseError: The folder is of another run.
    """
    if folder is None:
        return make()
    key = hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()
    if folder.exists():
        config, tensors = read_artefact(folder, "contrast")
        if config.get("key") != key:
            raise ExciseError(
                f"{folder} is of a run with other options or data: delete it, or leave out --resume"
            )
        return Contrast(
            config["component"], tensors["scores"], tensors["low"], tensors["protected"],
            config["contrast"], config["rank_by"], tensors.get("factors"),
        )  # fmt: skip
    found = make()
    tensors = {"scores": found.scores, "low": found.low, "protected": found.protected}
    if found.factors is not None:
        tensors["factors"] = found.factors
    config = {"key": key, "component": found.component, "rank_by": found.rank_by,
              "contrast": found.config}  # fmt: skip
    write_artefact(folder, "contrast", config, tensors, README)
    return found


def forget_contrast(folder: Path) -> None:
    """Remove what `kept_contrast` kept, once its run is done.

    It is renamed first, to a name that `check_output` sweeps up after a kill: half a folder under
    its own name would stop the next run.

    Args:
        folder: `.NAME.progress` beside the output NAME.
    """
    gone = folder.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):  # the output is written, and that is what counts
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
