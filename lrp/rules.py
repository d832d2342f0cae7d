"""The relevance rules: what each non-linear spot does to the gradient.

In gradient form (Arras et al. 2025, arXiv 2502.15886) LRP keeps the forward pass and replaces the
local derivative at the non-linear spots, so that afterwards relevance is `activation * gradient`.
Linear layers and residual additions need no rule: there the gradient already is LRP-0.

Each rule is an autograd function that takes the *original* output and returns it unchanged, so a
model under rules computes bit-identical logits. The slopes are pure functions of tensors.

Sources: AttnLRP (Achtibat et al. 2024, arXiv 2402.05602), CP-LRP (Ali et al. 2022).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


Fire = Callable[[], None]
"""Called once by each backward pass of a rule; the audit counts these."""


def silu_slope(x: Tensor) -> Tensor:
    """`silu(x) / x`, which is the logistic function: 0.5 at zero."""
    return torch.sigmoid(x)


def gelu_slope(x: Tensor) -> Tensor:
    """`gelu(x) / x`, the normal distribution function: 0.5 at zero."""
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh_slope(x: Tensor) -> Tensor:
    """`gelu(x) / x` of the tanh approximation: 0.5 at zero."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu_slope,
    "gelu": gelu_slope,
    "gelu_tanh": gelu_tanh_slope,
}
"""`f(x) / x` by module kind. ReLU is absent: its derivative already equals `relu(x) / x`."""


class ActivationRule(Function):
    """Identity rule for an element-wise activation: the slope becomes `f(x) / x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, slope: Callable[[Tensor], Tensor], fire: Fire):
        ctx.save_for_backward(x)
        ctx.slope, ctx.fire = slope, fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (x,) = ctx.saved_tensors
        ctx.fire()
        return ctx.slope(x).mul_(grads[0]), None, None, None


class NormRule(Function):
    """RMSNorm and LayerNorm with the standard deviation held constant.

    `scale` is the elementwise weight; with `centred` the mean subtraction stays part of the
    function (LayerNorm).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor | None, eps: float, centred: bool, fire: Fire
    ):
        x = full_precision(x)
        if centred:
            x = x - x.mean(-1, keepdim=True)
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1]
        inverse_std = torch.rsqrt(mean_square + eps)
        ctx.save_for_backward(inverse_std, scale)
        ctx.centred, ctx.fire = centred, fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        inverse_std, scale = ctx.saved_tensors
        ctx.fire()
        grad = grads[0] * inverse_std
        if scale is not None:
            grad.mul_(scale)
        if ctx.centred:
            grad.sub_(grad.mean(-1, keepdim=True))
        return grad.to(grads[0].dtype), None, None, None, None, None


class ShareRule(Function):
    """Give a factor of a product its share of the relevance: the gradient times `share`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, fire: Fire):
        ctx.share, ctx.fire = share, fire
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        ctx.fire()
        return grads[0] * ctx.share, None, None


class EpsilonRule(Function):
    """Epsilon stabiliser of a linear layer: `R_j = z_j g_j` shrinks by `z / (z + eps sign z)`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, epsilon: float, fire: Fire):
        ctx.save_for_backward(z)
        ctx.epsilon, ctx.fire = epsilon, fire
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        (z,) = ctx.saved_tensors
        ctx.fire()
        magnitude = full_precision(z).abs()
        share = magnitude / (magnitude + ctx.epsilon)
        return (grads[0] * share).to(grads[0].dtype), None, None


def full_precision(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are: products are noisy there."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
