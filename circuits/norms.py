"""Norms as linear maps: what a small part of a residual stream becomes behind one, and back.

Under the relevance rule of norms the standard deviation is a constant, so a norm shares out its
output over the parts of its input exactly. Without rules the map is the norm's derivative.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.families import kind_of


@dataclass(frozen=True)
class LinearNorm:
    """RMSNorm or LayerNorm at one point of its domain, without its bias."""

    scale: Float[Tensor, " d"]
    centred: bool
    inverse_std: Float[Tensor, "*n 1"]
    unit: Float[Tensor, "*n d"] | None
    """The normalised input before the scale, where the standard deviation is differentiated."""

    @classmethod
    def at(cls, norm: nn.Module, x: Float[Tensor, "*n d"], constant_std: bool) -> "LinearNorm":
        """Linearise a norm.

        Args:
            norm: An RMSNorm or LayerNorm of a supported family.
            x: Its input.
            constant_std: Whether the standard deviation is held constant (the relevance rule).
        """
        module: Any = norm
        kind = kind_of(norm)
        centred = kind == "layer_norm"
        eps = module.variance_epsilon if kind == "rms_norm" else module.eps
        scale = module.weight if module.weight is not None else x.new_ones(x.shape[-1])
        scale = 1.0 + scale if kind == "rms_norm_plus_one" else scale
        x = x - x.mean(-1, keepdim=True) if centred else x
        inverse_std = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        return cls(scale.detach(), centred, inverse_std, None if constant_std else x * inverse_std)

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
