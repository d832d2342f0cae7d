"""excise verify: is this edit in this model, and nothing else?"""

import sys
from pathlib import Path

import click

from ..core.files.json_text import json_text
from . import options as shared
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
    from ..edits.verify import verify_edit

    found = verify_edit(model, edit, revision=revision)
    if as_json:
        say(json_text(found.to_json()))
    elif found.ok:
        say(found)
    if not found.ok:
        say(f"excise: {found}", err=True)
        sys.exit(shared.GATE_NOT_MET)
