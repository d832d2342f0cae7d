"""Which options of `excise prune` go together, where no recipe of weights is asked for."""

from typing import Any

import click
from click.core import ParameterSource


OF_RECIPES = ("recipe", "layer_device", "resume")
"""Options of weights, besides those that change a recipe."""


def check_units(options: dict[str, Any]) -> None:
    """Refuse options that do not go together, before anything is read.

    Args:
        options: Those of `excise prune`, called for whole units or with a relevance.

    Raises:
        ExciseError: Names the option and the way out.
    """
    from ..core.errors import ExciseError, unknown_name
    from ..prune.cut import RANKS, check_sparsity
    from ..prune.units import get_unit_criterion
    from .prune import CHANGES

    component = options["components"]
    by_relevance = options["relevance"] is not None
    beside = "--relevance" if component == "weights" else f"--components {component}"
    of_recipes = f"is for recipes of weights: leave it out with {beside}"
    of_relevance = "" if by_relevance else "is for --relevance: give that, or leave it out"
    refused = {
        **dict.fromkeys((*CHANGES, *OF_RECIPES), of_recipes),
        "criterion": "makes scores and --relevance has them: give one" if by_relevance else "",
        "rank": of_relevance,
        "other_model": of_relevance,
    }
    if options["zero"] or component == "weights":
        refused["compensate"] = "is for what is removed, and --zero or weights remove nothing"
    if component == "layers":
        refused |= {
            "relevance": "has no scores of layers: take a --criterion (excise ls unit-criteria)",
            "zero": "is for neurons and heads: leave it out, and layers are taken out",
            "compensate": "is for neurons and heads: no bias takes up what a layer leaves",
        }
    context = click.get_current_context()
    for name, why in refused.items():
        if why and context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            raise ExciseError(f"--{name.replace('_', '-')} {why}")
    if options["rank"] not in RANKS:
        raise unknown_name("rank", options["rank"], RANKS)
    if options["sparsity"] is None:
        raise ExciseError("say how much goes: --sparsity 0.2")
    check_sparsity(options["sparsity"])
    if options["criterion"] is not None:
        get_unit_criterion(options["criterion"], options["components"])
