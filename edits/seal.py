"""The files of an edit, sealed by a checksum so that damage and careless change are noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError
from ..core.provenance import check_listed


KIND = "edit"

README = """# Edit

{edit}

What it scales is in `edit.safetensors`; where it comes from, what was measured, and the hashes of
the checkpoint it belongs to are in `config.json`. It fits that checkpoint alone.

    excise show EDIT                 what is in it
    excise apply MODEL EDIT -o OUT   an edited copy of the model
    excise verify OUT EDIT           is it in there, and nothing else
    excise revert OUT EDIT -o BASE   the checkpoint back, bit by bit
"""


def checksum(config: Mapping[str, Any], tensors: bytes, readme: str) -> str:
    """Return the SHA-256 over config (less itself), tensors, README.

    The config has those of all other files, so that nothing of an edit's folder is left out.
    """
    rest = {name: value for name, value in config.items() if name != "checksum"}
    total = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for content in (tensors, readme.encode()):
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def check_files(path: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Refuse an edit folder with any byte other than it was written with.

    Returns:
        The contents of its other files: what was seen, and the card. An edit of an older excise
        lists none, so that none of them counts.

    Raises:
        ExciseError: A file is missing or changed.
    """
    try:
        text = (path / "config.json").read_text(encoding="utf-8")
        tensors = (path / f"{KIND}.safetensors").read_bytes()
        readme = (path / "README.md").read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ExciseError(f"{path} is no whole edit ({error}): get it again") from error
    as_written = json.dumps(config, indent=2) + "\n"
    if text != as_written or config.get("checksum") != checksum(config, tensors, readme):
        raise ExciseError(
            f"{path} was changed after it was written (its checksum differs): get it again"
        )
    return check_listed(path, config.get("files", {}))
