"""The `excise` command: verbs, and what happens when one fails."""

import importlib
import logging
import os
import re
import sys
from difflib import get_close_matches
from typing import Any

import click

from .. import __version__
from ..core.errors import ExciseError
from ..core.files.escape import one_line
from .terminal import say
from .words import strict


VERBS = {
    "score": "Score heads, neurons, tokens and weights on reference data.",
    "prune": "Cut the least relevant components and write a plain model folder.",
    "circuit": "Find the circuit of a task, test it, and draw it as a page.",
    "correct": "Find what carries a behaviour, take it out, and prove that it is gone.",
    "eval": "Measure models, compare them, and decide by a gate.",
    "apply": "Write a copy of a model with edits in it.",
    "verify": "Check that a model is its base with its edits, and nothing else.",
    "revert": "Take an edit out of a model, bit by bit.",
    "diff": "Print what sets two edits or two circuits apart.",
    "show": "Print a relevance, a circuit or an edit; draw it.",
    "ls": "List families, methods, targets, tasks, scorers and gate rules.",
    "env": "Print versions and devices, for bug reports.",
    "demo": "Score, cut, control and measure the embedded model; write one page.",
}
"""Each verb is the command `<verb>` in `cli/<verb>.py` (`eval` in `evaluate.py`)."""

LONGEST = 1500
"""Characters of a message: it may repeat what was given."""

_MODULES = {"eval": "evaluate"}


class _Verbs(click.Group):
    """A group that imports a verb when it is called, so that help needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            near = get_close_matches(cmd_name, VERBS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(VERBS)}"
            raise click.UsageError(f"no verb {cmd_name!r}: {hint}", ctx)
        module = importlib.import_module(f".{_MODULES.get(cmd_name, cmd_name)}", __package__)
        return strict(module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        handler = _Said(ctx)
        log = logging.getLogger(__name__.partition(".")[0])
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            verb = error.ctx.command_path if error.ctx else ctx.command_path
            said = one_line(error.format_message(), LONGEST)
            say(f"excise: {said} See {verb} --help.", err=True)
            sys.exit(2)
        except ExciseError as error:
            if ctx.params.get("debug"):
                raise
            say(f"excise: {one_line(_in_options(str(error), ctx), LONGEST)}", err=True)
            sys.exit(1)
        except KeyboardInterrupt as stop:
            said = str(stop) or "nothing half-written is left"
            say(f"excise: interrupted; {said}", err=True)
            sys.exit(130)
        finally:
            log.removeHandler(handler)


class _Said(logging.Handler):
    """Prints what the library logs on the way, beside the result."""

    def __init__(self, ctx: click.Context):
        super().__init__(logging.INFO)
        self.ctx = ctx

    def emit(self, record: logging.LogRecord) -> None:
        say(_in_options(record.getMessage(), self.ctx), err=True)


def _in_options(message: str, ctx: click.Context) -> str:
    """Call parameters, which the library writes in backquotes, as the verb's options call them."""
    verb = ctx.command.get_command(ctx, ctx.invoked_subcommand or "")  # type: ignore[attr-defined]
    flags = {
        str(param.name): max(param.opts, key=len)
        for param in (verb.params if verb else ())
        if isinstance(param, click.Option)
    }
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), message)


@click.command(
    cls=_Verbs,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
    epilog="MODEL is a hub id, a folder, a .gguf file, or smollm2 (embedded, no download).",
)
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an expected failure.")
def group(debug: bool) -> None:
    """Find the circuit. Cut it. Prove it."""
    del debug  # read from the context by `invoke`


def main() -> None:
    """Run the command line of this process."""
    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
    group()
