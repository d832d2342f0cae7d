"""excise prune: cut the least relevant components."""

import json
from pathlib import Path
from typing import Any

import click

from . import options as shared


@click.command(
    "prune",
    epilog="Example: excise prune smollm2 --relevance ioi --components heads --sparsity 0.2 -o cut",
)
@shared.model_options
@click.option(
    "--relevance", type=click.Path(path_type=Path), required=True, help="A folder from score."
)
@click.option("--components", default="neurons", show_default=True, help="heads, neurons, weights.")
@click.option("--sparsity", type=float, required=True, help="Share that goes, as in 0.3.")
@click.option("--rank", default="abs", show_default=True, help="abs or signed: what is low.")
@click.option("--other-model", is_flag=True, help="Use a relevance of other weights all the same.")
@click.option("--dry-run", is_flag=True, help="Print what would go, and stop.")
@shared.output_options
@shared.json_option
def command(
    relevance: Path,
    components: Any,
    sparsity: float,
    rank: Any,
    other_model: bool,
    dry_run: bool,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut the least relevant components of MODEL; write a plain HuggingFace folder."""
    from ..core.artefact import check_output
    from ..core.errors import ExciseError
    from ..core.export import RECIPE, read_recipes, save_model
    from ..lrp.relevance import Relevance
    from ..prune.cut import select

    if output is None and not dry_run:
        raise ExciseError("say where the model goes: -o FOLDER")
    if output is not None and not dry_run:
        check_output(output, overwrite)
    scores = Relevance.from_pretrained(relevance)
    mask = select(scores, components, sparsity, rank)
    result = {"components": components, "asked": sparsity, "sparsity": mask.sparsity}
    if dry_run:
        click.echo(json.dumps(result) if as_json else f"would cut {mask}")
        return
    assert output is not None
    loaded = shared.load(options)
    if not other_model:
        scores.check_model(loaded.model)
    mask.apply_(loaded.model)
    recipe = {"verb": "prune", **result, "rank": rank, "relevance": scores.config}
    if before := read_recipes(loaded.name).get(RECIPE):  # an edit of an edit
        recipe["before"] = before
    save_model(loaded, output, recipe, overwrite)
    if as_json:
        click.echo(json.dumps({"output": str(output), **result}))
    else:
        click.echo(f"cut {mask}\nwritten to {output}")
