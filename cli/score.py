"""excise score: relevance of a model's components."""

import time
from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
from ..core.files.numbers import whole_number
from . import options as shared
from .terminal import say


@click.command(
    "score",
    epilog="Examples: excise score smollm2 --task ioi -o ioi   |   "
    "excise score MODEL --text calibration.txt --weights '*' --aggregate square -o relevance",
)
@shared.model_options
@shared.data_options
@click.option("--method", default="lrp", show_default=True, help="See excise ls methods.")
@click.option("--target", help="What is explained; see excise ls targets.  [default: by source]")
@click.option(
    "--components",
    default="heads,neurons,tokens",
    show_default=True,
    help="Which of heads, neurons, tokens; comma-separated.",
)
@click.option(
    "--weights", multiple=True, help="Score weights of matching linears, as in '*' or '*mlp*'."
)
@click.option("--aggregate", default="signed", show_default=True, help="signed, abs or square.")
@click.option("--epsilon", default=0.0, help="Stabiliser of linear layers.  [default: 0]")
@click.option("--steps", default=8, show_default=True, help="Of integrated gradients.")
@click.option("--skip-first-token", is_flag=True, help="Leave the attention sink out.")
@click.option("--batch-size", default="auto", show_default=True, help="Samples per pass.")
@click.option("--resume", is_flag=True, help="Keep progress beside the output; go on from it.")
@click.option("--dry-run", is_flag=True, help="Print what it would need, and stop.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(output: Path | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Score heads, neurons, tokens and weights of MODEL on reference data.

    Under `accelerate launch` the samples are shared out over the processes.
    """
    from ..core.errors import ExciseError
    from ..core.files.output import progress_of
    from ..core.memory import Forecast, peak, readable
    from ..lrp.score import score

    dry_run, resume = options.pop("dry_run"), options.pop("resume")
    if output is None and not dry_run:
        raise ExciseError("say where the relevance goes: -o FOLDER")
    if output is not None and not dry_run:
        shared.check_output(output, overwrite, "relevance")
    model, load_options = options.pop("model"), shared.loading(options)
    names = (name.strip() for name in options.pop("components").split(","))
    options["components"] = [name for name in names if name]
    options["batch_size"] = whole_number(options["batch_size"]) or options["batch_size"]
    told: list[Forecast] = []

    def tell(expected: Forecast) -> None:
        told.append(expected)
        if _is_main():
            found, wanted = expected.counts["samples"], options["samples"]
            if found < wanted and options["prompts"] is None:
                say(f"only {found} of {wanted} samples are given", err=True)
            say(str(expected), err=True)

    started = time.perf_counter()
    relevance = score(
        model, load_options=load_options, progress=True, dry_run=dry_run, tell=tell,
        resume=progress_of(output) if resume and output else None, **options,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    expected = told[0]
    if not _is_main():
        return
    if output is None or dry_run:
        per_pass = expected.counts["samples per pass"]
        say(json_text({"samples": expected.counts["samples"], "batch_size": per_pass,
                       "peak": expected.peak}))  # fmt: skip
        return
    measured = {"seconds": round(seconds, 3), "peak": peak(), "forecast_seconds":
                round(expected.seconds, 3), "forecast_peak": expected.peak}  # fmt: skip
    relevance.save_pretrained(output, overwrite)
    say(f"took {seconds:.1f} s, peak memory {readable(peak())}", err=True)
    if as_json:
        say(json_text({"output": str(output), **relevance.config, **measured}))
    else:
        say(f"{relevance}\nwritten to {output}; look at it with: excise show {output}")


def _is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
