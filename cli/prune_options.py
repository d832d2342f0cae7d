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

    component: Any = options["components"]
    by_relevance = options["relevance"] is not None
    removes = component != "weights" and not options["zero"]
    refused = {
        **dict.fromkeys((*CHANGES, *OF_RECIPES), "is for weights and their recipes"),
        "criterion": "is for scoring, and --relevance has the scores" if by_relevance else "",
        "rank": "" if by_relevance else "is for --relevance",
        "other_model": "" if by_relevance else "is for --relevance",
        "compensate": "" if removes else "is for what is removed, and here it is set to zero",
    }
    if component == "layers":
        refused |= {
            "relevance": "has no scores of layers (take a --criterion of excise ls unit-criteria)",
            "zero": "is for neurons and heads: layers are taken out",
            "compensate": "is for neurons and heads: no bias takes up a layer's mean",
        }
    context = click.get_current_context()
    for name, why in refused.items():
        if why and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            flag = "--" + name.replace("_", "-")
            raise ExciseError(f"{flag} {why}: leave it out with --components {component}")
    if options["rank"] not in RANKS:
        raise unknown_name("rank", options["rank"], RANKS)
    if options["sparsity"] is None:
        raise ExciseError("say how much goes: --sparsity 0.2")
    check_sparsity(options["sparsity"])
    if options["criterion"] is not None:
        get_unit_criterion(options["criterion"], component)
