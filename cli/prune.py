"""excise prune: cut weights, neurons, heads or layers."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .calibration import calibration_of
from .prune_options import CHANGES, check_options
from .terminal import say


if TYPE_CHECKING:
    from ..prune.recipe import Recipe


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
    elif options["components"] == "weights" and options["relevance"] is None:
        _weights(output, overwrite, as_json, progress, options)
    else:
        from .prune_units import prune_units

        prune_units(output, overwrite, as_json, options)


def _weights(
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    resume: Path | None,
    options: dict[str, Any],
) -> None:
    """Zero weights by a recipe."""
    from ..core.export import save_model
    from ..core.loading import load_model
    from ..core.memory import peak, readable, unpageable, watched
    from ..prune.forecast import forecast_pruning
    from ..prune.progress import Progress
    from ..prune.run import prune_weights

    recipe = recipe_of(options, options["recipe"])
    source, offload = calibration_of(options), options["offload"]
    loaded = load_model(options.pop("model"), shared.loading(options), offload)
    samples = source.samples(loaded, placeholders=options["dry_run"])
    expected = forecast_pruning(loaded.model, samples, recipe, options["batch_size"])
    say(f"{options['recipe']}: {recipe}\n{source}: {expected}", err=True)
    if options["dry_run"]:
        planned = {"recipe": recipe.to_json(), "peak": expected.peak, "seconds": expected.seconds}
        say(json_text(planned) if as_json else f"{recipe}: {expected}")
        return
    assert output is not None
    if offload and expected.parts["gradients"]:
        say("gradients read all weights from disk for every batch", err=True)
    started = time.perf_counter()
    with watched(count=unpageable) as held:
        pruned = prune_weights(
            loaded.model, samples, recipe, batch_size=options["batch_size"], resume=resume,
            device=options["layer_device"], seed=options["seed"], progress=True,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    most = held.most if offload else peak()
    result = {"sparsity": pruned.sparsity, "asked": recipe.goal, "recipe": recipe.to_json()}
    extra = {"calibration": str(source), "divergences": pruned.divergences}
    recipe_told = {"verb": "prune", **result, **extra}
    save_model(loaded, output, recipe_told, overwrite, parts={"mask": pruned.mask})
    Progress(resume).remove()
    measured = {"seconds": round(seconds, 3), "peak": most,
                "forecast_seconds": round(expected.seconds, 3), "forecast_peak": expected.peak,
                "divergences": pruned.divergences}  # fmt: skip
    say(f"took {seconds:.1f} s, peak memory {readable(most)}", err=True)
    if as_json:
        say(json_text({"output": str(output), **result, **measured}))
    else:
        say(f"cut {pruned.mask} by {recipe}\nwritten to {output}")


def _table(
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    resume: Path | None,
    options: dict[str, Any],
) -> None:
    """Compare recipes, or sparsities, or both."""
    from ..core.documents import BUILTIN, read_documents
    from ..core.provenance import Seen
    from ..core.texts import line_hashes, near
    from ..eval.perplexity import Perplexity
    from ..prune.forecast import forecast_pruning
    from .prune_table import measure_all, write_table

    names = _listed(options["compare"]) or [options["recipe"]]
    plain = {"sparsity": None} if options["sweep"] else {}
    recipes = {name: recipe_of({**options, **plain}, name) for name in names}
    sparsities = [_share(text) for text in _listed(options["sweep"])]
    sparsities = sparsities or sorted({recipe.sparsity for recipe in recipes.values()})
    text, window, limit = (options[key] for key in ("perplexity", "window", "limit"))
    documents = read_documents(text, limit * window)
    if text == BUILTIN:
        documents = documents[1::2]  # the others are for calibration
    metric = Perplexity(documents, "window", window, limit, source=text)
    source = calibration_of(options)
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


def recipe_of(options: dict[str, Any], name: str) -> "Recipe":
    """Return a recipe by name, with what the options change."""
    from ..core.errors import ExciseError
    from ..prune.recipe import OWL, get_recipe
    from ..prune.scopes import parse_scope

    changes = {key: options[key] for key in CHANGES if options[key] is not None}
    if changes.get("budget") == OWL:
        changes.setdefault("budget_unit", "matrix")  # it has no other
    fixed_counts = changes.get("scope", "row") not in ("row", "layer")
    if changes.get("budget") == "none" or (fixed_counts and "budget" not in changes):
        changes["budget"] = None  # such a scope leaves nothing to a budget
    if options["sparsity"] is not None:
        changes["sparsity"] = options["sparsity"]
    recipe = get_recipe(name, **changes)
    fixed, table = parse_scope(recipe.scope).kind == "n:m", options["compare"] or options["sweep"]
    if fixed and options["sweep"]:
        raise ExciseError(f"scope {recipe.scope} has one sparsity: leave --sweep out")
    if options["sparsity"] is None and not fixed and not table:
        raise ExciseError("say how much goes: --sparsity 0.5, or --scope 2:4")
    if options["sparsity"] is not None and fixed and options["sparsity"] != recipe.goal:
        raise ExciseError(
            f"scope {recipe.scope} cuts {recipe.goal:g}, not {options['sparsity']:g}: "
            "leave --sparsity out"
        )
    return recipe


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _share(text: str) -> float:
    from ..core.errors import ExciseError, shown
    from ..core.files.numbers import number

    found = number(text)
    if found is None:
        raise ExciseError(f"--sweep: {shown(text)} is no number: give shares, as in 0.3,0.5")
    return found
