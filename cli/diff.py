"""excise diff: what sets two artefacts of one kind apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


def diff_edits(a: Path, b: Path) -> tuple[dict[str, Any], list[str]]:
    """Compare two edits: as JSON values, and as lines for a terminal."""
    from ..edits.compose import diff, named
    from ..edits.edit import Edit

    one, other = Edit.from_pretrained(a), Edit.from_pretrained(b)
    found = diff(one, other)
    rows = {
        **{key: (f"{factor:g}", "-") for key, factor in found.only_a.items()},
        **{key: ("-", f"{factor:g}") for key, factor in found.only_b.items()},
        **{key: (f"{pair[0]:g}", f"{pair[1]:g}") for key, pair in found.changed.items()},
    }
    lines = [f"a  {one}", f"b  {other}"]
    if not found.same_base:
        lines.append("they belong to different checkpoints")
    if rows:
        body = [(named(key), *rows[key]) for key in sorted(rows, key=str)]
        lines += ["", shared.aligned(("component", "a", "b"), body)]
    lines += [f"different values are added to {name}" for name in found.biases]
    if found.none:
        lines.append("they do the same")
    return {"a": one.digest, "b": other.digest, **found.to_json()}, lines


def diff_circuits(a: Path, b: Path) -> tuple[dict[str, Any], list[str]]:
    """Compare two circuits: as JSON values, and as lines for a terminal."""
    from ..circuits.circuit import Circuit
    from ..circuits.compare import compare_circuits

    one, other = Circuit.from_pretrained(a), Circuit.from_pretrained(b)
    found = compare_circuits(one, other)
    lines = [
        f"a  {one}",
        f"b  {other}",
        "",
        f"{found.common} {found.level} in both; Jaccard {found.jaccard:.3f}, by chance "
        f"{found.expected:.3f}",
    ]
    if found.rank_correlation is not None:
        lines.append(f"rank correlation of all scores: {found.rank_correlation:.3f}")
    for name, names in (("a", found.only_first), ("b", found.only_second)):
        if names:
            lines += ["", f"only in {name}:", *(f"  {component}" for component in names)]
    return found.as_json(), lines


DIFFS: dict[str, Callable[[Path, Path], tuple[dict[str, Any], list[str]]]] = {
    "circuit": diff_circuits,
    "edit": diff_edits,
}
"""How to compare, by the kind that an artefact's config names."""


@click.command("diff", epilog="Example: excise diff ioi-by-relp ioi-by-eap")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--top", default=20, show_default=True, help="Lines to print.")
@shared.json_option
def command(a: Path, b: Path, top: int, as_json: bool) -> None:
    """Print what sets two circuits or two edits A and B apart."""
    from ..core.errors import ExciseError
    from ..core.files.artefact import read_config

    kinds = [read_config(path).get("kind") or "a model" for path in (a, b)]
    if kinds[0] != kinds[1] or kinds[0] not in DIFFS:
        raise ExciseError(
            f"{a} is {kinds[0]} and {b} is {kinds[1]}: give two of {', '.join(sorted(DIFFS))}"
        )
    found, lines = DIFFS[kinds[0]](a, b)
    if as_json:
        say(json_text(found))
        return
    text = "\n".join(lines).splitlines()
    say("\n".join(text[:top]))
    if len(text) > top:
        say(f"and {len(text) - top} lines more: --json has them all")
