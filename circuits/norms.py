"""Norms as linear maps: what a small part of a residual stream becomes behind one, and back.

Under the relevance rule of norms the standard deviation is a constant, so a norm shares out its
output over the parts of its input exactly. Without rules the map is the norm's derivative.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..lrp.difference import secant_root
from ..lrp.scope import norm_parameters


@dataclass(frozen=True)
class LinearNorm:
    """RMSNorm or LayerNorm at one point of its domain, without its bias."""

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
        x = x - x.mean(-1, keepdim=True) if centred else x
        inverse_std = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        unit = None if constant_std else x * inverse_std
        return cls(_detached(scale, x), centred, inverse_std, unit)

    @classmethod
    def between(
        cls, norm: nn.Module, x: Float[Tensor, "*n d"], other: Float[Tensor, "*n d"]
    ) -> "LinearNorm":
        """Return the linear map that takes the difference of two inputs to that of the outputs.

        It is the one of `excise.lrp.difference`, which is symmetric like the derivative.
        """
        scale, eps, centred = norm_parameters(norm)
        if centred:
            x, other = (t - t.mean(-1, keepdim=True) for t in (x, other))
        inverse_std, fall = secant_root(x, other, eps)
        unit = (x + other) / 2 * (2 * fall / inverse_std).sqrt()
        return cls(_detached(scale, x), centred, inverse_std, unit)

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


def _detached(scale: Tensor | None, x: Tensor) -> Tensor:
    return x.new_ones(x.shape[-1]) if scale is None else scale.detach()
