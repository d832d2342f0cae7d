"""What scaling components means, in entries of weight tensors.

A neuron goes with its column of the MLP's last linear, a head with its columns of the attention's
output projection, a weight with itself. One column is all a neuron's contribution, in gated MLPs
too, so scaling it is exact and leaves the linears before it alone. Whatever meets in one entry is
multiplied before it is rounded, and the values are always those of the untouched base: so edits
give the same bits in any order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import ExciseError
from ..core.families import Family, ModelView


Unit = tuple[int, int]
"""Layer, and head or neuron in it."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of a model's decoder layers are, by the name of their tensor."""

    family: Family
    n_layers: int
    head_dim: int
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor, by its name in the live model."""

    @classmethod
    def of_model(cls, view: ModelView) -> "Layout":
        """Look at a live model."""
        shapes = {name: tuple(p.shape) for name, p in view.model.named_parameters()}
        return cls(view.family, len(view.layers), view.head_dim, shapes)

    def name(self, layer: int, part: str, kind: str = "weight") -> str:
        """Return the name of a tensor of a layer, as in `model.layers.0.mlp.down_proj.weight`.

        Raises:
            ExciseError: The model has fewer layers.
        """
        if layer >= self.n_layers:
            raise ExciseError(f"the edit is of another model: no layer {layer} in {self.n_layers}")
        return f"{self.family.body}.layers.{layer}.{part}.{kind}"


@dataclass(frozen=True)
class Change:
    """New values of some entries of one tensor: `original * factors + added`, rounded once."""

    indices: Int[Tensor, " n"]
    """Flat, ascending, each once."""
    factors: Float[Tensor, " n"]
    added: Float[Tensor, " n"] | None = None

    def apply(self, values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the new values of these entries, in the dtype of the original ones.

        Computed in float64; a removed weight is +0, never -0.

        Raises:
            ExciseError: A new value does not fit the dtype.
        """
        exact = values.double() * self.factors.to(values.device)
        exact += 0.0 if self.added is None else self.added.to(values.device)
        new = exact.to(values.dtype)
        if not bool(new.isfinite().all()):
            dtype = str(values.dtype).removeprefix("torch.")
            raise ExciseError(
                f"a changed weight or bias is beyond {dtype}, or was no number before: give "
                "smaller factors, or a base without NaN"
            )
        return new


def changes(
    layout: Layout,
    heads: Mapping[Unit, float],
    neurons: Mapping[Unit, float],
    weights: Mapping[str, tuple[Tensor, Tensor]],
    biases: Mapping[str, Tensor],
) -> dict[str, Change]:
    """Return the change of each tensor that is touched, by its name in the live model.

    Args:
        layout: The model.
        heads: Factor of each.
        neurons: Factor of each.
        weights: Flat indices and factors, by the name of a weight matrix in a decoder layer.
        biases: What is added to the bias of an MLP's or attention's last linear, by name.

    Raises:
        ExciseError: A component that the model does not have.
    """
    family = layout.family
    columns: dict[str, dict[int, float]] = {}
    for what, part, width, units in (
        ("head", family.attention_out, layout.head_dim, heads),
        ("neuron", family.mlp_out, 1, neurons),
    ):
        for (layer, unit), factor in units.items():
            name = layout.name(layer, part)
            n = _matrix(layout, name)[1] // width
            if unit >= n:
                raise ExciseError(
                    f"the edit is of another model: no {what} {unit} in layer {layer}, "
                    f"which has {n} {what}s"
                )
            one = columns.setdefault(name, {})
            one.update(dict.fromkeys(range(unit * width, (unit + 1) * width), factor))
    found = {
        name: _merged(_matrix(layout, name), columns.get(name, {}), weights.get(name))
        for name in {**columns, **weights}
    }
    outputs = [
        layout.name(layer, part, "bias")
        for layer in range(layout.n_layers)
        for part in (family.attention_out, family.mlp_out)
    ]
    for name, added in biases.items():
        if name not in layout.shapes or name not in outputs:
            raise ExciseError(
                f"the edit adds to {name}, which is no output bias of this model's layers"
            )
        if layout.shapes[name] != tuple(added.shape):
            raise ExciseError(
                f"the edit adds {added.numel()} values to {name}, which is {layout.shapes[name]}"
            )
        n = added.numel()
        found[name] = Change(torch.arange(n), torch.ones(n, dtype=torch.float64), added.double())
    return dict(sorted(found.items()))


def _matrix(layout: Layout, name: str) -> tuple[int, int]:
    """Return the shape of a weight matrix of a decoder layer; embeddings may be tied, so not those.

    Raises:
        ExciseError: No such matrix.
    """
    shape = layout.shapes.get(name, ())
    if len(shape) != 2 or not name.startswith(f"{layout.family.body}.layers."):
        raise ExciseError(f"the edit is of another model: no weight matrix {name} in its layers")
    return shape[0], shape[1]


def _merged(
    shape: tuple[int, int], columns: Mapping[int, float], elements: tuple[Tensor, Tensor] | None
) -> Change:
    """Return the change of one matrix, of whole columns and of single elements."""
    rows, width = shape
    cols = torch.tensor(sorted(columns), dtype=torch.int64)
    factors = torch.tensor([columns[int(col)] for col in cols], dtype=torch.float64)
    at = (torch.arange(rows)[:, None] * width + cols).flatten()  # (rows * columns), ascending
    if elements is None:
        return Change(at, factors.repeat(rows))
    indices, own = elements
    if indices.numel() and int(indices.max()) >= rows * width:
        raise ExciseError(
            f"the edit is of another model: no weight {int(indices.max())} in a matrix of "
            f"{rows} x {width}"
        )
    union, where = torch.cat([at, indices]).unique(return_inverse=True)
    product = torch.ones(union.numel(), dtype=torch.float64)
    product[where[: at.numel()]] *= factors.repeat(rows)
    product[where[at.numel() :]] *= own.double()
    return Change(union, product)
