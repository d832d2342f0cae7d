"""What a shrunk model weighs, counted before anything is taken out."""

from torch import Tensor

from ...core.families import LayerView, ModelView
from ..mask import Mask
from .compensation import bias_key, outputs
from .shrink import under_switch, writers


def parameters_of(view: ModelView) -> int:
    """Count the parameters of a model; tied ones once."""
    return sum(parameter.numel() for parameter in view.model.parameters())


def parameters_left(view: ModelView, mask: Mask, compensated: bool = False) -> int:
    """Count the parameters that `shrink` will leave. Nothing is changed.

    Args:
        view: The model, still whole.
        mask: One that `check_shrink` accepts.
        compensated: Whether what goes leaves its mean, for which biases may be made.
    """
    keep = mask.keep[mask.component]
    total = parameters_of(view)
    if mask.component == "layers":
        return total - sum(
            sum(parameter.numel() for parameter in layer.module.parameters())
            for layer, stays in zip(view.layers, keep.tolist(), strict=True)
            if not stays
        )
    for layer, output, stays in zip(view.layers, outputs(view, mask.component), keep, strict=True):
        for linear in writers(layer, mask.component):
            gone = linear.out_features - _rows(linear.out_features, stays)
            total -= gone * (linear.in_features + (linear.bias is not None))
        total -= (output.in_features - _rows(output.in_features, stays)) * output.out_features
        if compensated and output.bias is None:
            total += _new_biases(view, layer, mask.component, stays)
    return total


def _new_biases(view: ModelView, layer: LayerView, component: str, stays: Tensor) -> int:
    """Count the biases that a layer is given where it has none, at their size after the cut."""
    cut = {id(linear) for linear in writers(layer, component)}
    return sum(
        _rows(linear.out_features, stays) if id(linear) in cut else linear.out_features
        for linear in under_switch(view, layer, bias_key(view, component) or "")
        if linear.bias is None
    )


def _rows(size: int, stays: Tensor) -> int:
    """Return how many of the rows or columns stay: units have the same number of them each."""
    return size * int(stays.sum()) // len(stays)
