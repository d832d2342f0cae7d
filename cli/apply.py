"""excise apply: an edited copy of a checkpoint."""

from pathlib import Path

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


@click.command("apply", epilog="Example: excise apply smollm2 edit -o corrected")
@shared.model_argument
@click.argument(
    "edits", metavar="EDIT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@shared.output_options
@shared.json_option
def command(
    model: str,
    edits: tuple[Path, ...],
    revision: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a copy of MODEL with one or several edits in it, whatever their order.

    MODEL is the checkpoint the edits were made for, or one with other edits of it. Weights are
    copied tensor by tensor, all other files as they are.
    """
    from ..edits.apply import apply_edit

    output = shared.required(output, "an edited model")
    shared.check_output(output, overwrite, "model", in_place=True)
    written = apply_edit(model, edits, output, revision=revision, overwrite=overwrite)
    if written.left_out:
        left_out = ", ".join(written.left_out)
        say(f"not copied, since unedited weights may be in them: {left_out}", err=True)
    for edit in written.edits:
        if edit.seen.unknown:
            say(f"warning: {edit.seen.unknown}", err=True)
    say(json_text(written.to_json()) if as_json else written)
