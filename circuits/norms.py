"""Norms as linear maps: what a small part of a residual stream becomes behind one, and back.

Under the relevance rule of norms the standard deviation is a constant, so a norm shares out its
output over the parts of its input exactly. Without rules the map is the norm's derivative, and
between two inputs the one that takes their difference to that of the outputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..lrp.difference import secant_root
from ..lrp.rules import full_precision
from ..lrp.scope import norm_parameters


@dataclass(frozen=True)
class LinearNorm:
    """RMSNorm or LayerNorm at one point of its domain, or between two, without its bias."""

    scale: Float[Tensor, " d"]
    centred: bool
    inverse_std: Float[Tensor, "*n 1"]
    unit: Float[Tensor, "*n d"] | None
    """The normalised input before the scale; None where the standard deviation is constant."""

    @classmethod
    def at(cls, norm: nn.Module, x: Float[Tensor, "*n d"], constant_std: bool) -> "LinearNorm":
        """Linearise a norm.

        Args:
            norm: An RMSNorm or LayerNorm of a supported family.
            x: Its input.
            constant_std: Whether the standard deviation is held constant (the relevance rule).
        """
        scale, eps, centred = norm_parameters(norm)
        exact = full_precision(x)
        exact = exact - exact.mean(-1, keepdim=True) if centred else exact
        inverse_std = torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
        unit = None if constant_std else exact * inverse_std
        return cls._like(x, scale, centred, inverse_std, unit)

    @classmethod
    def between(
        cls, norm: nn.Module, x: Float[Tensor, "*n d"], other: Float[Tensor, "*n d"]
    ) -> "LinearNorm":
        """Return the linear map that takes the difference of two inputs to that of the outputs.

        It is the one of `excise.lrp.difference`, which is symmetric like the derivative.
        """
        scale, eps, centred = norm_parameters(norm)
        first, second = (full_precision(t) for t in (x, other))
        if centred:
            first, second = (t - t.mean(-1, keepdim=True) for t in (first, second))
        inverse_std, fall = secant_root(first, second, eps)
        unit = (first + second) / 2 * (2 * fall / inverse_std).sqrt()
        return cls._like(x, scale, centred, inverse_std, unit)

    @classmethod
    def _like(
        cls, x: Tensor, scale: Tensor | None, centred: bool, inverse_std: Tensor,
        unit: Tensor | None,
    ) -> "LinearNorm":  # fmt: skip
        """Return the map in the precision of what it is applied to."""
        scale = x.new_ones(x.shape[-1]) if scale is None else scale.detach().to(x.dtype)
        unit = None if unit is None else unit.to(x.dtype)
        return cls(scale, centred, inverse_std.to(x.dtype), unit)

    def forward(self, part: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        """Return what a part of the input (or a small change of it) becomes."""
        if self.centred:
            part = part - part.mean(-1, keepdim=True)
        return self._scaled(part) * self.scale

    def backward(self, grad: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        """Return the gradient of the input, given that of the output: the transposed map."""
        grad = self._scaled(grad * self.scale)
        return grad - grad.mean(-1, keepdim=True) if self.centred else grad

    def _scaled(self, x: Tensor) -> Tensor:
        """Multiply with `(1 - u u^T / d) / std`, or with `1 / std` alone; both are symmetric."""
        if self.unit is not None:
            x = x - self.unit * (x * self.unit).mean(-1, keepdim=True)
        return x * self.inverse_std
