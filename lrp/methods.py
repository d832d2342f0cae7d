"""Ways to score components, behind one door: LRP and the baselines it is measured against."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..core.errors import ExciseError, look_up, unknown_name
from .scope import Variant


Aggregate = Literal["signed", "abs", "square"]
AGGREGATES: dict[Aggregate, str] = {
    "signed": "sum over tokens",
    "abs": "size of each sample's sum over tokens",
    "square": "sum over tokens of the square: second moment, for pruning",
}


def times_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Relevance, or activation x gradient: `x * grad`."""
    return x * grad


def gradient_size(_x: Tensor, grad: Tensor) -> Tensor:
    """Sensitivity: `|grad|`."""
    return grad.abs()


@dataclass(frozen=True)
class Method:
    """One way to score."""

    summary: str
    rules: Variant | None = None
    """Which relevance rules are on the model; None leaves the plain gradient."""
    contribution: Callable[[Tensor, Tensor], Tensor] | None = times_gradient
    """What an activation and its gradient contribute, element-wise; None takes no gradient."""
    weight_factor: bool = True
    """Whether a weight's score is multiplied by the weight itself."""
    steps: bool = False
    """Whether gradients are averaged along the path from zeroed token embeddings."""
    random: bool = False


METHODS: dict[str, Method] = {
    "lrp": Method("AttnLRP relevance (arXiv 2402.05602)", rules="attnlrp"),
    "cp-lrp": Method("LRP, attention patterns and gates constant", rules="cp-lrp"),
    "gradient-x-activation": Method("plain gradient times activation (or weight)"),
    "gradient": Method("size of the gradient", contribution=gradient_size, weight_factor=False),
    "integrated-gradients": Method(
        "activation times the gradient averaged over scaled token embeddings", steps=True
    ),
    "activation-norm": Method(
        "Euclidean norm over tokens; of weights |w| times the input's norm (Wanda)",
        contribution=None,
    ),
    "random": Method("seeded uniform numbers: the control", contribution=None, random=True),
}
"""Every method by name; the command line, `excise ls methods` and the tests read this table."""


def get_method(name: str) -> Method:
    """Return a method by name.

    Raises:
        ExciseError: No method has this name.
    """
    return look_up("method", name, METHODS)


def check_aggregate(method: Method, aggregate: str, weights: bool) -> None:
    """Refuse combinations that mean nothing.

    Raises:
        ExciseError: Unknown aggregate, or one that this method has no definition for.
    """
    if aggregate not in AGGREGATES:
        raise unknown_name("aggregate", aggregate, AGGREGATES)
    if method.steps and aggregate == "square":
        raise ExciseError(
            "integrated gradients are averaged before they are squared, so 'square' per token is "
            "not defined: use 'signed' or 'abs'"
        )
    if method.steps and weights:
        raise ExciseError(
            "integrated gradients score activations, not weights: leave the weights out, or use "
            "another method"
        )
