"""excise score: relevance of a model's components."""

import time
from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
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
    from ..core.data import check_length
    from ..core.errors import ExciseError
    from ..core.files.output import progress_of
    from ..core.memory import peak, readable
    from ..lrp.methods import check_aggregate, get_method
    from ..lrp.run import choose_batch_size, forecast, score
    from ..lrp.targets import get_target

    dry_run, resume = options.pop("dry_run"), options.pop("resume")
    if output is None and not dry_run:
        raise ExciseError("say where the relevance goes: -o FOLDER")
    if output is not None and not dry_run:
        shared.check_output(output, overwrite, "relevance")
    source = shared.source_of(options)
    target = options.pop("target") or source.default_target
    batch = options.pop("batch_size")
    get_target(target)
    check_aggregate(get_method(options["method"]), options["aggregate"], bool(options["weights"]))
    loaded = shared.load(options)
    options["components"] = [n for name in options["components"].split(",") if (n := name.strip())]
    samples = source.samples(loaded.tokenizer, target)
    check_length(samples, loaded.model.config)
    fit = {"target": target, **options}
    size = choose_batch_size(loaded.model, samples, **fit) if batch == "auto" else _positive(batch)
    tell = say if _is_main() else lambda *_, **__: None
    expected = forecast(loaded.model, samples, size, probe=not dry_run, **fit)
    if len(samples) < source.n and source.kind != "prompts":
        tell(f"the {source.kind} gives only {len(samples)} of {source.n} samples", err=True)
    tell(f"{len(samples)} samples, batch size {size}: {expected}", err=True)
    if dry_run:
        tell(json_text({"samples": len(samples), "batch_size": size, "peak": expected.peak}))
        return
    assert output is not None
    progress = progress_of(output) if resume else None
    started = time.perf_counter()
    relevance = score(loaded.model, samples, batch_size=size, resume=progress, progress=True, **fit)
    seconds = time.perf_counter() - started
    measured = {"seconds": round(seconds, 3), "peak": peak(), "forecast_seconds":
                round(expected.seconds, 3), "forecast_peak": expected.peak}  # fmt: skip
    relevance.config.update(source.provenance)
    if _is_main():
        relevance.save_pretrained(output, overwrite)
    tell(f"took {seconds:.1f} s, peak memory {readable(peak())}", err=True)
    if as_json:
        tell(json_text({"output": str(output), **relevance.config, **measured}))
    else:
        tell(f"{relevance}\nwritten to {output}; look at it with: excise show {output}")


def _positive(text: str) -> int:
    from ..core.errors import ExciseError, shown
    from ..core.files.numbers import whole_number

    found = whole_number(text)
    if found is None or found < 1:
        raise ExciseError(f"batch size is {shown(text)}: give a whole number from 1, or auto")
    return found


def _is_main() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process
