"""Several edits as one, in any order; and what sets two edits apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise
from operator import or_
from typing import Any

import torch

from ..core.errors import ExciseError
from ..core.files.artefact import versions
from .edit import Edit


Component = tuple[str, int | str, int]
"""`head` or `neuron`, layer, unit; or `weight`, matrix, flat index."""


def components(edit: Edit) -> dict[Component, float]:
    """List every component of an edit with its factor."""
    found: dict[Component, float] = {}
    for what, units in (("head", edit.heads), ("neuron", edit.neurons)):
        found.update({(what, layer, unit): factor for (layer, unit), factor in units.items()})
    for name, (indices, factors) in edit.weights.items():
        pairs = zip(indices.tolist(), factors.tolist(), strict=True)
        found.update({("weight", name, index): factor for index, factor in pairs})
    return found


def compose(edits: Sequence[Edit]) -> Edit:
    """Make one edit of several; the order does not matter.

    What two edits scale by the same factor is scaled once. A weight in the column of a neuron or
    head that another edit scales takes both factors. Values for one bias are summed.

    Args:
        edits: Of one checkpoint, each once.

    Raises:
        ExciseError: None given, one given twice, different checkpoints, or a conflict: one
            component with two factors, or one with a compensating bias in both edits.
    """
    if not edits:
        raise ExciseError("no edit to compose: give at least one")
    edits = sorted(edits, key=lambda edit: edit.digest)
    for one, other in pairwise(edits):
        if one.digest == other.digest:
            raise ExciseError(f"edit {one.digest[:12]} is there twice: give it once")
    if len({edit.config.get("base", {}).get("digest") for edit in edits}) > 1:
        names = " and ".join(_base(edit) for edit in edits)
        raise ExciseError(f"edits of different checkpoints do not compose: {names}")
    if len(edits) == 1:
        return edits[0]
    for one, other in combinations(edits, 2):
        _check_pair(one, other)
    factors = {key: factor for edit in edits for key, factor in components(edit).items()}
    return _edit_of(factors, edits)


@dataclass(frozen=True)
class Difference:
    """What sets edit `b` apart from edit `a`."""

    same_base: bool
    only_a: dict[Component, float]
    only_b: dict[Component, float]
    changed: dict[Component, tuple[float, float]]
    """In both, with the factor in each."""
    biases: tuple[str, ...]
    """Names of biases to which they add different values."""

    @property
    def none(self) -> bool:
        """Whether the two do the same to the same checkpoint."""
        return self.same_base and not (self.only_a or self.only_b or self.changed or self.biases)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values: components as lists, with their factors behind."""
        return {
            "same_base": self.same_base,
            "only_a": [[*key, factor] for key, factor in self.only_a.items()],
            "only_b": [[*key, factor] for key, factor in self.only_b.items()],
            "changed": [[*key, *factors] for key, factors in self.changed.items()],
            "biases": list(self.biases),
        }


def diff(a: Edit, b: Edit) -> Difference:
    """Compare two edits, component by component."""
    in_a, in_b = components(a), components(b)
    bases = [edit.config.get("base", {}).get("digest") for edit in (a, b)]
    biases = sorted(
        name
        for name in {*a.biases, *b.biases}
        if name not in a.biases
        or name not in b.biases
        or not torch.equal(a.biases[name].double(), b.biases[name].double())
    )
    return Difference(
        same_base=bases[0] == bases[1],
        only_a={key: factor for key, factor in in_a.items() if key not in in_b},
        only_b={key: factor for key, factor in in_b.items() if key not in in_a},
        changed={
            key: (factor, in_b[key])
            for key, factor in in_a.items()
            if key in in_b and in_b[key] != factor
        },
        biases=tuple(biases),
    )


def named(component: Component) -> str:
    """Name a component for a human, as in `head 5 of layer 3`."""
    what, place, unit = component
    return f"{what} {unit} of {place if what == 'weight' else f'layer {place}'}"


def _base(edit: Edit) -> str:
    base = edit.config.get("base")
    return f"{edit.digest[:12]} is of {base['name']} ({base['digest'][:12]})" if base else "no base"


def _check_pair(one: Edit, other: Edit) -> None:
    """Name a conflict of two edits."""
    first, second = components(one), components(other)
    pair = f"edits {one.digest[:12]} and {other.digest[:12]}"
    shared = [key for key in first if key in second]
    conflicts = [key for key in shared if first[key] != second[key]]
    if conflicts:
        key = conflicts[0]
        more = f" (and {len(conflicts) - 1} more)" if len(conflicts) > 1 else ""
        raise ExciseError(
            f"{pair} conflict: {named(key)} is scaled by {first[key]:g} in one and by "
            f"{second[key]:g} in the other{more}; leave one out"
        )
    if shared and {*one.biases} & {*other.biases}:
        raise ExciseError(
            f"{pair} both scale {named(shared[0])} and both make up for it in a bias: leave one out"
        )


def _edit_of(factors: dict[Component, float], edits: Sequence[Edit]) -> Edit:
    units: dict[str, dict[tuple[int, int], float]] = {"head": {}, "neuron": {}}
    elements: dict[str, tuple[list[int], list[float]]] = {}
    for (what, place, unit), factor in factors.items():
        if isinstance(place, int):
            units[what][place, unit] = factor
        else:
            indices, own = elements.setdefault(place, ([], []))
            indices.append(unit)
            own.append(factor)
    biases = {}
    for name in sorted({name for edit in edits for name in edit.biases}):
        parts = torch.stack([e.biases[name].double() for e in edits if name in e.biases])
        biases[name] = parts.sort(0).values.sum(0) if len(parts) > 1 else parts[0]
    return Edit(
        heads=units["head"],
        neurons=units["neuron"],
        weights={n: (torch.tensor(i), torch.tensor(f)) for n, (i, f) in elements.items()},
        biases=biases,
        config=_config(edits),
    ).with_seen(reduce(or_, (edit.seen for edit in edits)))


def _config(edits: Sequence[Edit]) -> dict[str, Any]:
    """Say where a composed edit comes from; it has no evidence of its own."""
    if not all(edit.config for edit in edits):
        return {}
    touched = {name: sha for edit in edits for name, sha in edit.base["touched"].items()}
    keys = ("recipe", "evidence")
    parts = [{"edit": e.digest, **{key: e.config.get(key, {}) for key in keys}} for e in edits]
    return {
        "created": max(edit.config["created"] for edit in edits),
        "versions": versions(),
        "base": {**edits[0].base, "touched": dict(sorted(touched.items()))},
        "recipe": {"composed": parts},
        "evidence": {},
    }
