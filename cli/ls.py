"""excise ls: what exists, read from the tables."""

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


KINDS = ("families", "methods", "targets", "tasks", "aggregates", "criteria", "unit-criteria",
         "scopes", "recipes", "circuit-methods", "levels", "ablations", "planted", "scorers",
         "rules")  # fmt: skip


def table(kind: str) -> dict[str, str]:
    """Return the names of a kind, each with a few words on it."""
    if kind == "families":
        from ..core.families import FAMILIES

        return {name: f"such as {family.example}" for name, family in FAMILIES.items()}
    if kind == "methods":
        from ..lrp.methods import METHODS

        return {name: method.summary for name, method in METHODS.items()}
    if kind == "targets":
        from ..lrp.targets import SUMMARIES

        return SUMMARIES
    if kind == "aggregates":
        from ..lrp.methods import AGGREGATES

        return {str(name): words for name, words in AGGREGATES.items()}
    if kind == "criteria":
        from ..prune.criteria import CRITERIA

        return {name: f"{c.summary} ({c.source})" for name, c in CRITERIA.items()}
    if kind == "unit-criteria":
        from ..prune.structured.units import UNIT_CRITERIA

        return {
            name: f"{c.summary} ({c.source}): {', '.join(c.components)}"
            for name, c in UNIT_CRITERIA.items()
        }
    if kind == "scopes":
        from ..prune.scopes import SCOPES

        return SCOPES
    if kind == "recipes":
        from ..prune.recipe import RECIPES

        return {name: str(recipe) for name, recipe in RECIPES.items()}
    if kind == "circuit-methods":
        from ..circuits.methods import CIRCUIT_METHODS

        return {name: method.summary for name, method in CIRCUIT_METHODS.items()}
    if kind == "levels":
        from ..circuits.levels import LEVELS

        return {name: level.summary for name, level in LEVELS.items()}
    if kind == "ablations":
        from ..circuits.ablation import ABLATIONS

        return {str(name): f"replaced by {words}" for name, words in ABLATIONS.items()}
    if kind == "planted":
        from ..circuits.testbed.planted import CIRCUITS

        return CIRCUITS
    if kind == "scorers":
        from ..eval.scorers import SCORERS

        return SCORERS
    if kind == "rules":
        from ..eval.policy import BOUNDS

        return {**BOUNDS, "equivalence": "and it changes by no more than max_increase either way"}
    from ..tasks.registry import TASKS

    return {
        name: f"{task.summary}; counterfactuals: {', '.join(task.counterfactuals)}"
        for name, task in TASKS.items()
    }


@click.command("ls")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@shared.json_option
def command(kind: str | None, as_json: bool) -> None:
    """List what exists, a kind at a time or all: names that options take."""
    found = {name: table(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        say(json_text(found))
        return
    for name, rows in found.items():
        if not kind:
            say(f"{name}:")
        width = max(map(len, rows))
        for row, words in rows.items():
            say(f"  {row:{width}}  {words}".rstrip())
