"""excise circuit: find the part of a model that carries a task, and show that it does."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .show_circuit import described
from .terminal import say


if TYPE_CHECKING:
    from ..circuits.scores import Attribution
    from ..circuits.search import Parts, Search
    from ..core.loading import Loaded


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
    from ..circuits.find import find_circuit
    from ..core.errors import ExciseError
    from ..core.files.output import progress_of
    from ..core.memory import peak, readable

    dry_run, resume = options.pop("dry_run"), options.pop("resume")
    if output is None and not dry_run:
        raise ExciseError("say where the circuit goes: -o FOLDER")
    if output is not None and not dry_run:
        shared.check_output(output, overwrite, "circuit")
    check_source(options)
    search = search_of(options)
    loaded = shared.load(options)
    parts = parts_of(options, loaded)
    given = given_scores(options["scores"], loaded)
    tell_plan(loaded, parts, search, options["batch_size"])
    if dry_run:
        return
    assert output is not None
    started = time.perf_counter()
    circuit = find_circuit(
        loaded.model,
        parts,
        search,
        task=options["task"] or options["prompts"].name,
        tokenizer=loaded.tokenizer,
        batch_size=options["batch_size"],
        scores=given,
        allow_failing=options["allow_failing"],
        resume=progress_of(output) if resume else None,
        progress=True,
        made_from=made_from(options),
    )
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


def check_source(options: dict[str, Any]) -> None:
    """Refuse a missing or double source before a model is loaded."""
    from ..core.data import read_prompts
    from ..core.errors import ExciseError
    from ..tasks.registry import get_task

    task, prompts = options["task"], options["prompts"]
    if (task is None) == (prompts is None):
        raise ExciseError("give one of --task and --prompts: excise ls tasks lists tasks")
    for name in ("samples", "batch_size"):
        if options[name] < 1:
            raise ExciseError(f"--{name.replace('_', '-')} is {options[name]}: give at least 1")
    if task is not None:
        get_task(task)
        return
    if options["counterfactual"]:
        raise ExciseError("--counterfactual belongs to --task: write yours into the prompts file")
    paired = all(prompt.counterfactual is not None for prompt in read_prompts(prompts))
    if not paired:
        options["method"] = options["method"] or "lrp"
        options["ablation"] = options["ablation"] or "zero"


def search_of(options: dict[str, Any]) -> "Search":
    """Return how to look, checked before a model is loaded."""
    from ..circuits.search import Search

    return Search(
        level=options["level"] or "nodes",
        method=options["method"] or ("lrp" if options["level"] == "weights" else "relp-ig"),
        rank=options["rank"],
        ablation=options["ablation"] or ("zero" if options["level"] == "weights" else "resample"),
        faithfulness=options["faithfulness"],
        size=options["size"],
        refined=options["refine"],
        minimality=options["minimality"],
        controls=options["controls"],
        seed=options["seed"],
    )


def parts_of(options: dict[str, Any], loaded: "Loaded") -> "Parts":
    """Read or make the prompts, and tokenise them."""
    from ..circuits.pairs import encode_pairs
    from ..circuits.search import Parts, prompts_in_parts
    from ..core.data import read_prompts
    from ..tasks.registry import task_prompts

    tokenizer, seed, n = loaded.tokenizer, options["seed"], options["samples"]
    if options["task"] is None:
        return prompts_in_parts(encode_pairs(tokenizer, read_prompts(options["prompts"])), seed)

    def part(split: Any, n: int) -> Any:
        made = task_prompts(options["task"], tokenizer, n, seed, split, options["counterfactual"])
        return encode_pairs(tokenizer, made)

    return Parts(part("train", n), part("validation", max(2, n // 2)), part("test", n))


def made_from(options: dict[str, Any]) -> dict[str, Any]:
    """Return where the prompts and the scores are from, for the circuit to say."""
    import hashlib

    from ..tasks.registry import get_task

    task, prompts, scores = options["task"], options["prompts"], options["scores"]
    found: dict[str, Any] = {"source": f"task {task}" if task else f"prompts {prompts}"}
    if task:
        found["counterfactual"] = options["counterfactual"] or get_task(task).counterfactuals[0]
    if scores:
        digest = hashlib.sha256(scores.read_bytes()).hexdigest()[:16]
        found["scores"] = {"file": str(scores), "sha256": digest}
    return found


def given_scores(path: Path | None, loaded: "Loaded") -> "Attribution | None":
    """Read another tool's scores for this model, if there are any."""
    from ..circuits.exchange import read_eap_ig
    from ..circuits.graph import Graph
    from ..core.families import ModelView

    return None if path is None else read_eap_ig(path, Graph.of(ModelView.of(loaded.model)))


def tell_plan(loaded: "Loaded", parts: "Parts", search: "Search", batch_size: int) -> None:
    """Say what memory the search will need, before it starts."""
    from ..circuits.plan import exact_passes, planned_peak
    from ..core.memory import readable

    need = planned_peak(loaded.model, parts, search, batch_size)
    n = ", ".join(f"{len(pairs)} to {use}" for use, pairs in zip(
        ("score", "choose", "test"), vars(parts).values(), strict=True))  # fmt: skip
    passes = exact_passes(loaded.model, parts, search, batch_size)
    patching = f"; exact patching takes {passes:,} passes" if passes else ""
    say(f"prompts: {n}; peak memory about {readable(need)}{patching}", err=True)
