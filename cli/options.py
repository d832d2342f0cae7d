"""Options that several verbs share, and the way from options to objects."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ExciseError
from .words import FilePath


if TYPE_CHECKING:
    from ..core.data import Prompt, Sample
    from ..core.loading import Loaded, LoadOptions

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
    for param in params:
        if isinstance(param.type, Readable | click.Path) and not isinstance(param.type, Writable):
            value = values.get(str(param.name)) or ()
            for one in map(str, value if isinstance(value, tuple) else (value,)):
                yield from (one, one.partition(":")[2])


def load(options: dict[str, Any]) -> "Loaded":
    """Load the model that the options name; takes its options out of the dictionary."""
    from ..core.loading import load_model

    return load_model(options.pop("model"), loading(options))


def loading(options: dict[str, Any]) -> "LoadOptions":
    """Return how to load; takes its options out of the dictionary."""
    from dataclasses import fields

    from ..core.loading import LoadOptions

    return LoadOptions(**{field.name: options.pop(field.name) for field in fields(LoadOptions)})


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table for a terminal: columns as wide as their widest cell."""
    lines = [headers, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(headers))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


@dataclass(frozen=True)
class Source:
    """Where reference samples come from."""

    kind: str
    """`task`, `text`, `dataset` or `prompts`."""
    name: str
    n: int
    length: int
    seed: int

    @property
    def default_target(self) -> str:
        """What is explained unless the user says otherwise."""
        by_kind = {"task": "logit-difference", "prompts": "logit"}
        return by_kind.get(self.kind, "next-tokens")

    def check(self) -> None:
        """Refuse a missing or broken source before a model is loaded."""
        from ..core.data import read_prompts
        from ..core.files.reading import read_text
        from ..tasks.registry import get_task

        if self.kind in ("text", "prompts"):
            (read_text if self.kind == "text" else read_prompts)(self.name)
        elif self.kind == "task":
            get_task(self.name)

    def samples(self, tokenizer: Any, target: str) -> "list[Sample]":
        """Read and tokenise.

        Raises:
            ExciseError: The source is missing, empty or unfit for the target.
        """
        from ..core.data import encode_continuations, encode_prompts, encode_texts

        if self.kind in ("task", "prompts"):
            prompts = self._prompts(tokenizer)
            encode = encode_continuations if target == "continuation" else encode_prompts
            return encode(tokenizer, prompts)
        return encode_texts(tokenizer, self._texts(), self.n, self.length)

    def _texts(self) -> list[str]:
        from ..core.data import dataset_text
        from ..core.files.reading import read_text

        # documents: enough for n samples of most texts
        return (
            [read_text(self.name)] if self.kind == "text" else dataset_text(self.name, self.n * 50)
        )

    def _prompts(self, tokenizer: Any) -> "Sequence[Prompt]":
        from ..core.data import read_prompts
        from ..tasks.registry import task_prompts

        if self.kind == "task":
            return task_prompts(self.name, tokenizer, self.n, self.seed)
        return read_prompts(self.name)[: self.n]


def source_of(options: dict[str, Any]) -> Source:
    """Return the one source that the options name; takes its options out of the dictionary.

    Raises:
        ExciseError: None, or more than one, was given; or no samples are asked for.
    """
    given = {k: v for k in ("task", "text", "dataset", "prompts") if (v := options.pop(k))}
    if len(given) != 1:
        got = " and ".join(f"--{name}" for name in given) or "none"
        raise ExciseError(f"give one of --task, --text, --dataset, --prompts; got {got}")
    ((kind, name),) = given.items()
    n, length = options.pop("samples"), options.pop("length")
    if n < 1:
        raise ExciseError(f"--samples is {n}: give at least 1")
    return Source(kind, str(name), n, length, options["seed"])
