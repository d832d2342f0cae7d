"""excise verify: is this edit in this model, and nothing else?"""

import sys
from pathlib import Path

import click

from ..core.files.json_text import json_text
from . import options as shared
from .evaluate import GATE_NOT_MET
from .terminal import say


@click.command("verify", epilog="Example: excise verify corrected edit")
@shared.model_argument
@click.argument("edit", metavar="[EDIT]", required=False, type=click.Path(path_type=Path))
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@shared.json_option
def command(model: str, edit: Path | None, revision: str | None, as_json: bool) -> None:
    """Check that MODEL is its base with its edits alone, and that EDIT is one of them.

    Every tensor is compared; configs and tokenizer are not. Exit code 3 if it does not hold.
    """
    from ..core.loading import model_folder
    from ..edits.edit import Edit
    from ..edits.verify import verify

    witness = Edit.from_pretrained(edit) if edit else None
    found = verify(model_folder(model, revision), witness)
    if as_json:
        say(json_text(found.to_json()))
    elif found.holds:
        say(str(found))
    if not found.holds:
        say(f"excise: {found}", err=True)
        sys.exit(GATE_NOT_MET)
