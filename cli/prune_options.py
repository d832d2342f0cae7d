"""Which options of `excise prune` go together: those of recipes, of units, of tables."""

from typing import Any

import click
from click.core import ParameterSource


CHANGES = ("criterion", "scope", "order", "update", "budget", "budget_unit", "floor", "ceiling",
           "rescore", "steps", "iterations", "damping", "tune")  # fmt: skip
"""Options that replace a field of the recipe."""
OF_RECIPES = ("recipe", *CHANGES, "layer_device", "offload", "resume")
"""Options of recipes of weights."""
OF_RELEVANCE = ("rank", "other_model")
OF_TABLES = ("perplexity", "window", "limit")


def check_options(options: dict[str, Any]) -> None:
    """Refuse options that were given and would have no effect, before anything is read.

    Args:
        options: Those of `excise prune`.

    Raises:
        ExciseError: Names the option and the way out.
    """
    from ..core.errors import ExciseError

    component, by_relevance = options["components"], options["relevance"] is not None
    table = next((name for name in ("compare", "sweep") if options[name]), None)
    refused: dict[str, str] = {}
    if table is None:
        refused |= dict.fromkeys(OF_TABLES, "is for tables: give --compare or --sweep, or leave it")
    elif component != "weights" or by_relevance:
        refused[table] = "is for recipes of weights: leave it out here"
    if table is not None:
        refused["offload"] = f"is for one model, and --{table} holds a copy of the dense one"
    if options["compare"]:
        refused["recipe"] = "is one of many here: name it in --compare"
    if not by_relevance:
        refused |= dict.fromkeys(OF_RELEVANCE, "is for --relevance: give that, or leave it out")
    if component == "weights":
        refused["compensate"] = "is for what is removed, and weights are zeroed"
        if not by_relevance:
            refused["zero"] = "is for neurons and heads: weights are zeroed anyway"
    if by_relevance or component != "weights":
        beside = "--relevance" if component == "weights" else f"--components {component}"
        why = f"is for recipes of weights: leave it out with {beside}"
        refused |= dict.fromkeys(OF_RECIPES, why)
        if component != "weights" and not by_relevance:
            del refused["criterion"]
        elif component != "weights":
            refused["criterion"] = "makes scores and --relevance has them: give one"
        if options["zero"]:
            refused["compensate"] = "is for what is removed, and --zero removes nothing"
    if component == "layers":
        refused |= {
            "relevance": "has no scores of layers: take a --criterion (excise ls unit-criteria)",
            "zero": "is for neurons and heads: leave it out, and layers are taken out",
            "compensate": "is for neurons and heads: no bias takes up what a layer leaves",
        }
    context = click.get_current_context()
    for name, why in refused.items():
        if context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            raise ExciseError(f"--{name.replace('_', '-')} {why}")


def check_units(options: dict[str, Any]) -> None:
    """Check the values of options for whole units, or for a relevance.

    Raises:
        ExciseError: No sparsity, or one out of range; unknown names.
    """
    from ..core.errors import ExciseError, unknown_name
    from ..prune.mask import RANKS, check_sparsity
    from ..prune.structured.units import get_unit_criterion

    if options["rank"] not in RANKS:
        raise unknown_name("rank", options["rank"], RANKS)
    if options["sparsity"] is None:
        raise ExciseError("say how much goes: --sparsity 0.2")
    check_sparsity(options["sparsity"])
    if options["criterion"] is not None:
        get_unit_criterion(options["criterion"], options["components"])
