"""excise prune: cut weights, neurons, heads or layers."""

from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .prune_options import CHANGES, check_options
from .terminal import say


@click.command(
    "prune",
    epilog="Examples: excise prune smollm2 --sparsity 0.5 -o sparse   |   "
    "excise prune MODEL --scope 2:4 --update admm --calibration text.txt -o out   |   "
    "excise prune MODEL --components neurons --sparsity 0.2 -o smaller",
)
@shared.model_options
@click.option("--sparsity", type=float, help="Share that goes, as in 0.5.")
@click.option(
    "--components", default="weights", show_default=True, help="weights, neurons, heads or layers."
)
@click.option("--recipe", default="best", show_default=True, help="See excise ls recipes.")
@click.option("--criterion", help="See excise ls criteria (of weights) and unit-criteria.")
@click.option("--scope", help="row, layer, global, N:M or block:RxC: what scores compete.")
@click.option("--order", help="oneshot, or sequential: layer by layer on the pruned prefix.")
@click.option("--update", help="none, obs or admm: what becomes of the weights that stay.")
@click.option("--budget", help="Whose global mask says how much each unit loses; or owl, none.")
@click.option("--budget-unit", help="row or matrix.")
@click.option("--floor", type=float, help="Least sparsity of a matrix.")
@click.option("--ceiling", type=float, help="Highest sparsity of a matrix.")
@click.option("--rescore", type=int, help="Layers after which gradients are taken again.")
@click.option("--steps", type=int, help="Rounds of an iterative schedule.")
@click.option("--iterations", type=int, help="Of ADMM.")
@click.option("--damping", type=float, help="Of the update.")
@click.option("--tune", type=int, help="Passes that fit scales and biases to the dense model.")
@click.option(
    "--calibration",
    type=shared.readable,
    default="builtin",
    show_default=True,
    help="A text file, a datasets id, builtin, or self: what the model writes.",
)
@click.option("--samples", default=32, show_default=True, help="Of the calibration.")
@click.option("--length", default=512, show_default=True, help="Tokens per sample.")
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1))
@click.option("--layer-device", help="Where layers are computed one at a time, as in cuda:0.")
@click.option(
    "--offload",
    type=shared.readable,
    help="A folder: keep the weights in files there, not in memory.",
)
@click.option("--relevance", type=click.Path(path_type=Path), help="Scores from a score folder.")
@click.option("--rank", default="abs", show_default=True, help="abs or signed, of --relevance.")
@click.option("--other-model", is_flag=True, help="Use a relevance of other weights all the same.")
@click.option("--zero", is_flag=True, help="Zero neurons or heads where they are; remove nothing.")
@click.option("--compensate", is_flag=True, help="Put the mean of what is removed into a bias.")
@click.option("--compare", help="Recipes, comma-separated: a table of perplexities, no model.")
@click.option("--sweep", help="Sparsities, comma-separated: the same, with curves.")
@click.option(
    "--perplexity", type=shared.readable, default="builtin", show_default=True,
    help="Text of the tables.",
)  # fmt: skip
@click.option("--window", default=1024, show_default=True, help="Tokens per window of it.")
@click.option("--limit", default=12, show_default=True, help="Windows of it.")
@click.option("--resume", is_flag=True, help="Keep progress beside the output; go on from it.")
@click.option("--dry-run", is_flag=True, help="Print what would be done and needed, and stop.")
@shared.seed_option
@shared.output_options
@shared.json_option
def command(output: Path | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Prune MODEL; write a plain HuggingFace folder, with its mask and its recipe.

    Weights become zero where they are. Neurons, heads and layers are taken out, so that the model
    is smaller, unless --zero. With --compare or --sweep nothing is written but a table.
    """
    from ..core.errors import ExciseError, unknown_name
    from ..core.files.output import progress_of

    parts = ("weights", "neurons", "heads", "layers")
    if options["components"] not in parts:
        raise unknown_name("component", options["components"], parts)
    table = bool(options["compare"] or options["sweep"])
    check_options(options)
    if output is None and not options["dry_run"] and not table:
        raise ExciseError("say where the model goes: -o FOLDER")
    if output is not None and not options["dry_run"]:
        shared.check_output(output, overwrite, "pruning-table" if table else "model")
    if options["resume"] and output is None:
        raise ExciseError("--resume keeps its progress beside the output: give -o FOLDER")
    progress = progress_of(output) if options["resume"] and output else None
    if table:
        _table(output, overwrite, as_json, progress, options)
    else:
        _model(output, overwrite, as_json, progress, options)


def _model(
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    resume: Path | None,
    options: dict[str, Any],
) -> None:
    """Prune weights, or take units out; print what a dry run says, or write the model."""
    from ..core.loading import load_model
    from ..lrp.relevance import Relevance
    from ..prune.calibration import Calibration
    from ..prune.model import prune_model
    from ..prune.pruned import PrunedModel, PruningForecast
    from ..prune.recipe import recipe_with
    from ..prune.structured.model import shrink_model
    from .prune_options import check_units

    weights, by_recipe = options["components"] == "weights", options["relevance"] is None
    names = ["sparsity", "relevance", "rank", "other_model", "calibration", "samples", "length",
             "batch_size", "seed", "dry_run"]  # fmt: skip
    more: dict[str, Any] = {"progress": True}
    if weights and by_recipe:
        changes = {key: options[key] for key in CHANGES if options[key] is not None}
        recipe_with(options["recipe"], options["sparsity"], **changes)  # before a model is loaded
        more |= {**changes, "recipe": options["recipe"], "device": options["layer_device"]}
        more["resume"] = resume
    else:
        check_units(options)
        if not weights:
            names += ["criterion", "compensate", "zero"]
            more["component"] = options["components"]
    if by_recipe:  # what is read is read once before a model is loaded, to be refused in time
        Calibration(*(options[name] for name in ("calibration", "samples", "length", "seed")))
    else:
        Relevance.from_pretrained(options["relevance"])
    asked = {name: options[name] for name in names}
    loaded = load_model(options.pop("model"), shared.loading(options), options["offload"])
    done = (prune_model if weights else shrink_model)(loaded, **asked, **more)
    if isinstance(done, PruningForecast):
        told = {**done.result, "peak": done.peak, "seconds": done.seconds}
        words = done.words if weights and by_recipe else f"would cut {done.words}"
        say(json_text(told) if as_json else words)
        return
    assert output is not None
    assert isinstance(done, PrunedModel)
    done.save_pretrained(output, overwrite)
    if not as_json:
        say(f"cut {done}\nwritten to {output}")
        return
    measured: dict[str, Any] = {}
    if done.recipe:
        measured = {"seconds": round(done.seconds, 3), "peak": done.peak,
                    "forecast_seconds": round(done.forecast.seconds, 3),
                    "forecast_peak": done.forecast.peak,
                    "divergences": done.provenance["divergences"]}  # fmt: skip
    say(json_text({"output": str(output), **done.result, **measured}))


def _table(
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    resume: Path | None,
    options: dict[str, Any],
) -> None:
    """Compare recipes, or sparsities, or both."""
    from ..core.documents import BUILTIN, read_documents
    from ..core.errors import ExciseError
    from ..core.provenance import Seen
    from ..core.texts import line_hashes, near
    from ..eval.perplexity import Perplexity
    from ..prune.calibration import Calibration
    from ..prune.forecast import forecast_pruning
    from ..prune.recipe import recipe_with
    from .prune_table import measure_all, write_table

    names = _listed(options["compare"]) or [options["recipe"]]
    sparsity = None if options["sweep"] else options["sparsity"]
    changes = {key: options[key] for key in CHANGES if options[key] is not None}
    recipes = {name: recipe_with(name, sparsity, **changes) for name in names}
    if options["sweep"] and (fixed := [r.scope for r in recipes.values() if r.fixed]):
        raise ExciseError(f"scope {fixed[0]} has one sparsity: leave `sweep` out")
    sparsities = [_share(text) for text in _listed(options["sweep"])]
    sparsities = sparsities or sorted({recipe.sparsity for recipe in recipes.values()})
    text, window, limit = (options[key] for key in ("perplexity", "window", "limit"))
    documents = read_documents(text, limit * window)
    if text == BUILTIN:
        documents = documents[1::2]  # the others are for calibration
    metric = Perplexity(documents, "window", window, limit, source=text)
    source = Calibration(*(options[key] for key in ("calibration", "samples", "length", "seed")))
    loaded = shared.load(options)
    samples = source.samples(loaded, placeholders=options["dry_run"])
    plans = {}
    for name, recipe in recipes.items():
        plans[name] = forecast_pruning(loaded.model, samples, recipe, options["batch_size"])
        say(f"{name}: {recipe}: {plans[name]}", err=True)
    if options["dry_run"]:
        told = {name: {"peak": p.peak, "seconds": p.seconds} for name, p in plans.items()}
        say(json_text(told) if as_json else f"would compare {', '.join(recipes)}")
        return
    measured = {line for text in documents for line in line_hashes(text)}
    if known := near(measured, Seen.by(samples).hashes):
        say(f"warning: {len(known)} lines of {text} are in {source.name} too", err=True)
    found = measure_all(
        loaded, samples, recipes, sparsities, metric, str(source), seed=options["seed"],
        batch_size=options["batch_size"], device=options["layer_device"], resume=resume,
        progress=True,
    )  # fmt: skip
    write_table(found, output, overwrite, as_json)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _share(text: str) -> float:
    from ..core.errors import ExciseError, shown
    from ..core.files.numbers import number

    found = number(text)
    if found is None:
        raise ExciseError(f"--sweep: {shown(text)} is no number: give shares, as in 0.3,0.5")
    return found
