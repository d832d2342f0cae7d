"""excise circuit: find the part of a model that carries a task, and show that it does."""

import time
from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .show_circuit import described
from .terminal import say


@click.command(
    "circuit",
    epilog="Examples: excise circuit smollm2 --task ioi -o ioi-circuit   |   "
    "excise circuit MODEL --prompts mine.jsonl --edges --size 200 -o OUT",
)
@shared.model_options
@click.option("--task", help="A built-in task, as in ioi; see excise ls tasks.")
@click.option("--counterfactual", help="Of the task; see excise ls tasks.  [default: its first]")
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="JSONL: clean, answer, wrong and, but for zero ablation, counterfactual.",
)
@click.option("--samples", default=48, show_default=True, help="Prompts to score; as many to test.")
@click.option(
    "--method", help="See excise ls circuit-methods.  [default: relp-ig; lrp without pairs]"
)
@click.option(
    "--scores", type=click.Path(path_type=Path), help="JSON of EAP-IG or MIB, instead of a method."
)
@click.option("--nodes", "level", flag_value="nodes", help="Heads and MLPs.  [default]")
@click.option("--kv-groups", "level", flag_value="kv-groups", help="Heads by shared keys.")
@click.option("--neurons", "level", flag_value="neurons", help="Hidden units of the MLPs.")
@click.option("--edges", "level", flag_value="edges", help="Every writer to every reader.")
@click.option("--weights", "level", flag_value="weights", help="Elements of weight matrices.")
@click.option("--rank", default="signed", show_default=True, help="signed, or abs: by size.")
@click.option("--ablation", help="resample, mean or zero.  [default: resample; zero without pairs]")
@click.option(
    "--faithfulness", default=0.9, show_default=True, help="Choose the fewest that reach it."
)
@click.option("--size", type=int, help="Choose so many instead.")
@click.option("--refine", is_flag=True, help="Make it smaller, greedily; takes minutes.")
@click.option("--minimality", is_flag=True, help="Leave each part out once; a run for each.")
@click.option("--controls", default=5, show_default=True, help="Random circuits beside it.")
@click.option("--batch-size", default=16, show_default=True, help="Prompts per pass.")
@click.option("--allow-failing", is_flag=True, help="Go on where the model fails the task.")
@click.option("--resume", is_flag=True, help="Keep scores beside the output; go on from them.")
@click.option("--dry-run", is_flag=True, help="Print what it would need, and stop.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(output: Path | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Find the circuit of a task in MODEL: components scored, chosen and tested on three sets.

    Prints it with faithfulness, completeness and controls, and writes a folder with a page.
    """
    from ..circuits.door import find_circuit
    from ..core.errors import ExciseError
    from ..core.files.output import progress_of
    from ..core.memory import peak, readable

    dry_run, resume = options.pop("dry_run"), options.pop("resume")
    if output is None and not dry_run:
        raise ExciseError("say where the circuit goes: -o FOLDER")
    if output is not None and not dry_run:
        shared.check_output(output, overwrite, "circuit")
    started = time.perf_counter()
    circuit = find_circuit(
        options.pop("model"),
        load_options=shared.loading(options),
        level=options.pop("level") or "nodes",
        resume=progress_of(output) if resume and output else None,
        progress=True,
        dry_run=dry_run,
        tell=lambda expected: say(str(expected), err=True),
        **options,
    )
    if dry_run:
        return
    assert output is not None
    circuit.save_pretrained(output, overwrite)
    seconds = time.perf_counter() - started
    for warning in circuit.config["warnings"]:
        say(f"warning: {warning}", err=True)
    say(f"took {seconds:.1f} s, peak memory {readable(peak())}", err=True)
    if as_json:
        say(json_text({**circuit.as_json(), "output": str(output),
                               "seconds": round(seconds, 3), "peak": peak()}))  # fmt: skip
    else:
        say(f"{described(circuit)}\nwritten to {output}; open {output / 'circuit.html'}")
