"""excise revert: take an edit out of a model."""

from pathlib import Path

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


@click.command("revert", epilog="Example: excise revert corrected -o base")
@shared.model_argument
@click.argument("edit", metavar="[EDIT]", required=False, type=shared.readable)
@click.option("--all", "everything", is_flag=True, help="Take out every edit.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@shared.output_options
@shared.json_option
def command(
    model: str,
    edit: str | None,
    everything: bool,
    revision: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a copy of MODEL without EDIT: a folder, or the beginning of the digest of an edit.

    Without EDIT the last one goes. Once none is left every tensor is the base's, bit by bit. To
    revert in place, give the folder itself: -o MODEL --overwrite.
    """
    from ..core.errors import ExciseError
    from ..core.loading import model_folder
    from ..edits.apply import revert
    from ..edits.edit import Edit

    if output is None:
        raise ExciseError("a reverted model is a new folder: give -o FOLDER")
    shared.check_output(output, overwrite, "model", in_place=True)
    if edit and everything:
        raise ExciseError(f"--all takes out every edit: give it, or {edit}")
    wanted = Edit.from_pretrained(edit) if edit and Path(edit).exists() else edit
    written = revert(model_folder(model, revision), output, wanted, overwrite, everything)
    if as_json:
        say(json_text(written.to_json()))
        return
    left = [f"left: {one}" for one in written.edits] or ["no edit is left: this is the base"]
    say("\n".join([*left, f"written to {output}"]))
