"""Prune whole neurons, heads and layers; and anything by the scores of a relevance folder."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..core.files.json_text import json_text
from . import options as shared
from .prune_options import check_units
from .terminal import say


if TYPE_CHECKING:
    from ..core.data import Sample
    from ..core.families import ModelView
    from ..core.loading import Loaded
    from ..lrp.relevance import Relevance
    from ..prune.mask import Mask

DEFAULT_UNIT_CRITERION = {"neurons": "lrp", "heads": "lrp", "layers": "block-influence"}
"""How units are scored unless the user says otherwise; of neurons, the best measured."""


def prune_units(
    output: Path | None, overwrite: bool, as_json: bool, options: dict[str, Any]
) -> None:
    """Prune by `--components neurons|heads|layers`, or by `--relevance`.

    Args:
        output: The folder to write; may be None with `--dry-run`.
        overwrite: Whether it may be replaced.
        as_json: Whether to print JSON.
        options: Those of `excise prune`.

    Raises:
        ExciseError: Options that do not go together, or what cannot be cut: before any scoring.
    """
    from ..core.export import save_model
    from ..lrp.relevance import Relevance

    check_units(options)
    folder = options["relevance"]
    relevance = None if folder is None else Relevance.from_pretrained(folder)
    if relevance and (options["zero"] or options["components"] == "weights"):
        done = _zero_by(relevance, as_json, options)
    else:
        done = _cut(relevance, as_json, options)
    if done is None:
        return
    assert output is not None
    loaded, mask, said, result, more = done
    if relevance:
        more = {"rank": options["rank"], "relevance": relevance.config, **more}
    recipe = {"verb": "prune", **result, **more}
    save_model(loaded, output, recipe, overwrite, parts={"mask": mask})
    printed = json_text({"output": str(output), **result})
    say(printed if as_json else f"cut {said}\nwritten to {output}")


Done: TypeAlias = "tuple[Loaded, Mask, str, dict[str, Any], dict[str, Any]]"
"""The model, what went, the same in words, what is printed, and what else the recipe says."""


def _zero_by(relevance: "Relevance", as_json: bool, options: dict[str, Any]) -> "Done | None":
    """Set what a relevance ranks lowest to zero; a dry run needs no model."""
    from ..prune.mask import select

    mask = select(relevance, options["components"], options["sparsity"], options["rank"])
    result = _result(mask, options)
    if options["dry_run"]:
        say(json_text(result) if as_json else f"would cut {mask}")
        return None
    loaded = _load(relevance, options)
    mask.apply_(loaded.model)
    return loaded, mask, str(mask), result, {"zero": True}


def _cut(relevance: "Relevance | None", as_json: bool, options: dict[str, Any]) -> "Done | None":
    """Take units out, or set them to zero, by a relevance or by scores from calibration."""
    from ..core.data import batches
    from ..core.families import ModelView
    from ..core.memory import peak, readable
    from ..core.provenance import Seen
    from ..prune.structured.compensation import check_biases, mean_inputs_of
    from ..prune.structured.shrink import check_shrink, shrink
    from ..prune.structured.size import parameters_left, parameters_of
    from ..prune.structured.units import forecast_units, get_unit_criterion
    from .calibration import calibration_of

    component, size = options["components"], options["batch_size"]
    zero, compensate = options["zero"], options["compensate"]
    name = "random" if relevance else options["criterion"] or DEFAULT_UNIT_CRITERION[component]
    criterion = get_unit_criterion(name, component)
    source = calibration_of(options) if criterion.needs_data or compensate else None
    loaded = _load(relevance, options)
    model, view = loaded.model, ModelView.of(loaded.model)
    mask = _choose(relevance, view, [], "random", options)  # how many go is known before which
    result = _result(mask, options) | ({} if relevance else {"criterion": name})
    said = f" by {options['relevance'] or name}"
    if zero:
        if not criterion.comparable:
            say(f"--zero compares layers, and {name} means another thing in each", err=True)
    else:
        check_shrink(view, mask)
        if compensate:
            check_biases(view, component)
        before, after = parameters_of(view), parameters_left(view, mask, compensate)
        result["parameters"] = {"before": before, "after": after}
        said += f": {_short(before)} -> {_short(after)} parameters"
    samples = source.samples(loaded, placeholders=options["dry_run"]) if source else []
    passes = name if criterion.needs_data else "wanda" if compensate else "random"
    expected = forecast_units(model, samples, component, passes, size)
    what = criterion.summary if not relevance else "scored before"
    say(f"{options['relevance'] or name}: {what}", err=True)
    say(f"{source or 'no calibration'}: {expected}", err=True)
    if options["dry_run"]:
        planned = json_text({**result, "peak": expected.peak})
        say(planned if as_json else f"would cut {mask}{said}")
        return None
    started = time.perf_counter()
    mask = _choose(relevance, view, samples, name, options)
    if zero:
        mask.apply_(model)
    else:
        means = mean_inputs_of(view, batches(samples, size), component) if compensate else None
        shrink(model, mask, means)
    seconds = time.perf_counter() - started
    say(f"took {seconds:.1f} s, peak memory {readable(peak())}", err=True)
    more: dict[str, Any] = {"zero": zero, "compensate": compensate, "seed": options["seed"]}
    if source:
        more["calibration"] = str(source)
        mask = replace(mask, seen=mask.seen | Seen.by(samples))
    return loaded, mask, f"{mask}{said}", result, more


def _choose(
    relevance: "Relevance | None",
    view: "ModelView",
    samples: "list[Sample]",
    criterion: str,
    options: dict[str, Any],
) -> "Mask":
    """Choose what stays: of each layer the same number, or with `--zero` compared over all."""
    from ..core.provenance import Seen
    from ..prune.mask import select_overall
    from ..prune.structured.shrink import select_uniform
    from ..prune.structured.units import unit_scores

    component, sparsity = options["components"], options["sparsity"]
    if relevance:
        scores = relevance.get(component)
        scores = scores if options["rank"] == "signed" else scores.abs()
        seen = relevance.seen
    else:
        scores = unit_scores(
            view.model, samples, component, criterion, batch_size=options["batch_size"],
            seed=options["seed"], progress=True,
        )  # fmt: skip
        seen = Seen.by(samples)
    if options["zero"]:
        return select_overall(scores, component, sparsity, seen=seen)
    return select_uniform(scores, component, sparsity, view, seen=seen)


def _load(relevance: "Relevance | None", options: dict[str, Any]) -> "Loaded":
    """Load the model, and hold it against the relevance that is to choose."""
    loaded = shared.load(options)
    if relevance and not options["other_model"]:
        relevance.check_model(loaded.model)
    return loaded


def _result(mask: "Mask", options: dict[str, Any]) -> dict[str, Any]:
    from ..prune.mask import check_effect

    check_effect(mask, options["sparsity"])
    asked = {"components": options["components"], "asked": options["sparsity"]}
    return {**asked, "sparsity": mask.sparsity}


def _short(number: int) -> str:
    """Render a number of parameters, as in `134.5 M`."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
