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
    from ..edits.apply import revert_edit

    output = shared.required(output, "a reverted model")
    shared.check_output(output, overwrite, "model", in_place=True)
    written = revert_edit(
        model, output, edit, everything=everything, revision=revision, overwrite=overwrite
    )
    say(json_text(written.to_json()) if as_json else written)
