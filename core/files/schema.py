"""What an artefact must hold, declared as data beside its class and checked here.

Of a config, a shape is a `Kind`, a dictionary of shapes (a key that ends in `?` may be missing,
`*` stands for all others), a list of one shape (any number of such) or a tuple (just these). Of
tensors it is an `Array` by name. An own helper and no library: shapes of tensors follow from each
other and from the config, which JSON schemas cannot say.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ExciseError, shown


if TYPE_CHECKING:
    from torch import Tensor

Shape = Any
"""See this module."""


@dataclass(frozen=True)
class Kind:
    """One value: what it is called in a message, and which values fit."""

    what: str
    fits: Callable[[Any], bool]


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 <= value <= 1e300


TEXT = Kind("a text", lambda value: isinstance(value, str))
NUMBER = Kind("a finite number", _finite)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def whole(least: int = 0, most: int = 2**53) -> Kind:
    """Return the shape of a whole number within bounds."""
    return Kind(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def one_of(names: Iterable[str]) -> Kind:
    """Return the shape of a name out of a few."""
    known = tuple(names)
    return Kind(f"one of {', '.join(known)}", lambda value: value in known)


def maybe(kind: Kind) -> Kind:
    """Return the shape of a value that may be null."""
    return Kind(f"{kind.what}, or null", lambda value: value is None or kind.fits(value))


def check(value: Any, shape: Shape, name: str) -> None:
    """Refuse a JSON value of another shape.

    Args:
        value: As read.
        shape: What it must be.
        name: What it is called, as in `config.json`.

    Raises:
        ExciseError: Names the part, what it is, and what it should be.
    """
    if isinstance(shape, Kind):
        if not shape.fits(value):
            raise ExciseError(f"{name} is {shown(value)}, and should be {shape.what}")
    elif isinstance(shape, dict):
        _check_object(value, shape, name)
    else:
        check(value, Kind("a list", lambda found: isinstance(found, list)), name)
        n = len(value)
        shapes = shape * n if isinstance(shape, list) else shape
        if n != len(shapes):
            raise ExciseError(f"{name} has {n} values, and should have {len(shapes)}")
        for index, (inner, one) in enumerate(zip(value, shapes, strict=True)):
            check(inner, one, f"{name}[{index}]")


def _check_object(value: Any, shape: Mapping[str, Shape], name: str) -> None:
    check(value, OBJECT, name)
    named = {key.removesuffix("?"): inner for key, inner in shape.items() if key != "*"}
    for key in shape:
        if key != "*" and not key.endswith("?") and key not in value:
            raise ExciseError(f"{name} lacks {key!r}")
    for key, inner in value.items():
        if (expected := named.get(key, shape.get("*"))) is not None:
            check(inner, expected, f"{name}.{shown(key)[1:-1]}")


@dataclass(frozen=True)
class Array:
    """A tensor: its kind of numbers, and its dimensions by name.

    Equal names are of equal size all through an artefact; `_` is of any. Every dimension has an
    entry at least.
    """

    kind: str
    """`float`, `int` or `bits` (bytes of eight)."""
    dims: str | None
    """As in "layers heads"; None is of any rank."""
    least: int = -(2**63)
    most: int = 2**63 - 1
    """Of whole numbers."""


def check_tensors(
    tensors: "Mapping[str, Tensor]",
    arrays: Mapping[str, Array],
    sizes: Mapping[str, int | None] | None = None,
) -> dict[str, int]:
    """Refuse tensors of other names, types, shapes or values.

    Args:
        tensors: As read.
        arrays: By name; `?` at the end as for configs, and `weights/*` is every such name.
        sizes: Dimensions that are known from elsewhere.

    Returns:
        The size of every named dimension.

    Raises:
        ExciseError: Names the tensor.
    """
    found = {name: size for name, size in (sizes or {}).items() if size is not None}
    for name in arrays:
        if not name.endswith(("?", "*")) and name not in tensors:
            raise ExciseError(f"the tensor {name!r} is missing")
    for name in sorted(tensors):
        array = next((a for key, a in arrays.items() if _matches(name, key)), None)
        if array is None:
            raise ExciseError(f"the tensor {shown(name)} belongs to no such artefact")
        _check_tensor(name, tensors[name], array, found)
    return found


def _matches(name: str, key: str) -> bool:
    return name.startswith(key[:-1]) if key.endswith("*") else name == key.removesuffix("?")


def _check_tensor(name: str, tensor: "Tensor", array: Array, sizes: dict[str, int]) -> None:
    import torch

    shape = tuple(tensor.shape)
    name = shown(name)
    fits = {
        "float": tensor.is_floating_point(),
        "int": tensor.dtype in (torch.int64, torch.int32),
        "bits": tensor.dtype == torch.uint8,
    }[array.kind]
    if not fits:
        raise ExciseError(f"the tensor {name} is {tensor.dtype}, and should be {array.kind}")
    dims = ("_",) * len(shape) if array.dims is None else tuple(array.dims.split())
    expected = [sizes.get(dim, size) for dim, size in zip(dims, shape, strict=False)]
    if len(dims) != len(shape) or list(shape) != expected or not math.prod(shape):
        asked = ", ".join(f"{dim} = {sizes[dim]}" if dim in sizes else dim for dim in dims)
        raise ExciseError(f"the tensor {name} is {shape}, and should be ({asked})")
    sizes.update({dim: size for dim, size in zip(dims, shape, strict=True) if dim != "_"})
    if array.kind == "float" and not bool(tensor.isfinite().all()):
        raise ExciseError(f"NaN or infinity is in the tensor {name}")
    if array.kind == "int" and not array.least <= int(tensor.min()) <= int(tensor.max()) <= (
        array.most
    ):
        raise ExciseError(f"the tensor {name} has values beyond {array.least} and {array.most}")
