"""Options that several verbs share, and the way from options to objects."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ExciseError
from ..core.files.columns import aligned as aligned
from .words import FilePath


if TYPE_CHECKING:
    from ..core.loading import Loaded, LoadOptions

GATE_NOT_MET = 3
"""Exit code where a gate was not met, or an edit does not verify."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def stack(*decorators: Decorator) -> Decorator:
    """Make one decorator of several, applied so that the first is listed first in the help."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


class Readable(click.types.StringParamType):
    """A file, a folder, or a name of something else that is read, as of a model."""


class Writable(FilePath):
    """An output."""


readable = Readable()
writable = Writable(path_type=Path)

_loading_options = stack(
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16, ..."),
    click.option("--device", help="As in cpu, cuda:0.  [default: the first GPU, or the CPU]"),
    click.option("--device-map", help="As in auto: spread over GPUs that hold all of it."),
    click.option("--load-in-4bit", is_flag=True, help="Quantise with bitsandbytes."),
    click.option("--load-in-8bit", is_flag=True, help="Quantise with bitsandbytes."),
    click.option("--allow-pickle", is_flag=True, help="Accept .bin weights; they can run code."),
)
"""How to load a model."""

model_argument = click.argument("model", metavar="MODEL", type=readable)
model_options = stack(model_argument, _loading_options)
models_options = stack(
    click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=readable),
    _loading_options,
)

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace an output of the same kind."
)

output_options = stack(
    click.option("-o", "--output", type=writable, help="Folder to write."),
    overwrite_option,
)

data_options = stack(
    click.option("--task", help="A built-in task, as in ioi; see excise ls tasks."),
    click.option("--text", type=click.Path(path_type=Path), help="A text file."),
    click.option("--dataset", type=readable, help="A datasets id[:config[:split]]."),
    click.option("--prompts", type=click.Path(path_type=Path), help="JSONL: clean, answer, ..."),
    click.option("--samples", default=64, show_default=True, help="How many samples."),
    click.option("--length", default=512, show_default=True, help="Tokens per sample of a text."),
)
"""What to score on: exactly one source."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
split_option = click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test",
    show_default=True, help="Of a task's prompts; score and circuit find on train.",
)  # fmt: skip
seed_option = click.option(
    "--seed",
    default=0,
    type=click.IntRange(0, 2**32 - 1),
    show_default=True,
    help="Of all that is drawn.",
)


def required(output: Path | None, what: str) -> Path:
    """Return an output that a verb cannot do without.

    Raises:
        ExciseError: None was given.
    """
    if output is None:
        raise ExciseError(f"{what} is a new folder: give -o FOLDER")
    return output


def check_output(output: Path, overwrite: bool, kind: str, in_place: bool = False) -> None:
    """Refuse an output before any work is done, by the one rule for all: see `core.output`.

    What the running command reads is known by the types of its options.

    Args:
        output: A folder or file.
        overwrite: Whether the user allows to replace it.
        kind: What will be written.
        in_place: Whether the output may be the model that is read.
    """
    from ..core.files.output import check_output

    context = click.get_current_context()
    reads = list(_reads(context.command.params, context.params))
    if in_place:
        reads = [read for read in reads if os.path.realpath(read) != os.path.realpath(output)]
    check_output(output, overwrite, kind, reads)


def _reads(params: Sequence[click.Parameter], values: dict[str, Any]) -> Iterator[str]:
    """Yield the paths that options may name; a scorer has its own behind a colon."""
    from ..core.files.reading import is_name

    for param in params:
        if isinstance(param.type, Readable | click.Path) and not isinstance(param.type, Writable):
            value = values.get(str(param.name)) or ()
            for one in map(str, value if isinstance(value, tuple) else (value,)):
                yield from filter(is_name, (one, one.partition(":")[2]))


def load(options: dict[str, Any]) -> "Loaded":
    """Load the model that the options name; takes its options out of the dictionary."""
    from ..core.loading import load_model

    return load_model(options.pop("model"), loading(options))


def loading(options: dict[str, Any]) -> "LoadOptions":
    """Return how to load; takes its options out of the dictionary."""
    from dataclasses import fields

    from ..core.loading import LoadOptions

    return LoadOptions(**{field.name: options.pop(field.name) for field in fields(LoadOptions)})
