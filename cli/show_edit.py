"""What `excise show` prints of an edit."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


if TYPE_CHECKING:
    from ..edits.edit import Edit


def show_edit(folder: Path, top: int, as_json: bool) -> None:
    """Print an edit: what it scales, where, for which checkpoint, and how it was found."""
    from ..edits.edit import Edit

    edit = Edit.from_pretrained(folder)
    if as_json:
        say(json_text(described(edit)))
        return
    say(f"{edit}\ncreated {edit.config['created']} for {edit.base['family']}\n")
    say(by_layer(edit))
    for name in ("recipe", "evidence"):
        if edit.config[name]:
            say(f"\n{name}: {json_text(edit.config[name])}")
    rows = strongest(edit)
    say("\n" + shared.aligned(("component", "factor"), rows[:top]))
    if len(rows) > top:
        say(f"and {len(rows) - top} more: --json has heads and neurons, or --top")


def described(edit: "Edit") -> dict[str, Any]:
    """Return an edit as JSON values; of weights, how many in which matrix."""
    return {
        "digest": edit.digest,
        "components": edit.n_components,
        "heads": [[*unit, factor] for unit, factor in edit.heads.items()],
        "neurons": [[*unit, factor] for unit, factor in edit.neurons.items()],
        "weights": {name: indices.numel() for name, (indices, _) in edit.weights.items()},
        "biases": list(edit.biases),
        **edit.config,
    }


def by_layer(edit: "Edit") -> str:
    """Count heads and neurons by layer, and weights by matrix."""
    heads, neurons = (Counter(layer for layer, _ in units) for units in (edit.heads, edit.neurons))
    rows = [
        (f"layer {layer}", str(heads[layer]), str(neurons[layer]), "")
        for layer in sorted({*heads, *neurons})
    ]
    rows += [(name, "", "", str(indices.numel())) for name, (indices, _) in edit.weights.items()]
    return shared.aligned(("", "heads", "neurons", "weights"), rows)


def strongest(edit: "Edit") -> list[tuple[str, str]]:
    """List components, those furthest from what they were first."""
    from ..edits.compose import components, named

    found = components(edit)
    order = sorted(found, key=lambda key: -abs(found[key] - 1))
    return [(named(key), f"{found[key]:g}") for key in order]
