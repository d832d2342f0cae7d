"""Relevance against a counterfactual: rules that share out a difference without a rest.

LRP asks what an output owes to its inputs as they are; here the question is what a *change* of the
output owes to the change of its inputs. Prompts and their counterfactuals go through the model as
one batch, and each rule replaces the local derivative by a multiplier between the two values `x`
and `x'` of a row, such that `sum_i m_i (x_i - x'_i) = y - y'` holds exactly. So it does for the
whole model: over any cut through it, multiplier times difference adds up to the change of the
explained value (DeepLIFT, Shrikumar et al. 2017, arXiv 1704.02685: "summation to delta").

For element-wise functions the multiplier is the slope of the secant (DeepLIFT's Rescale rule).
Products, norms and the softmax are derived here:

- `a b`: `(b + b') / 2` for `a` and `(a + a') / 2` for `b`.
- `x r`, with `r = 1 / v` and `v = sqrt(mean x^2 + eps)`: a product, and `r` falls by
  `1 / (v v' (v + v'))` per rise of the mean square, which is a product again.
- softmax: `p_i - p'_i = L_i (d_i - sum_j L_j d_j / sum_j L_j)` for changes `d` of the scores, with
  the logarithmic mean `L_i = (p_i - p'_i) / (ln p_i - ln p'_i)`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..core.classes import kind_of
from ..core.errors import ExciseError
from .attention import ACTIVE
from .rules import Fire, full_precision
from .scope import LRPScope, flows, norm_parameters


class DifferenceScope(LRPScope):
    """Put the rules on one model while the `with` block lasts; see `LRPScope`.

    Inside, the first half of each batch's rows are prompts and the second half their
    counterfactuals, row by row and position by position, padded alike. After a backward pass from
    the first half's outputs, gradients in the first half are multipliers; those in the second
    mean nothing. `audit` says how much of the change each layer has: all of it.

    Enter this scope before hooks are put on the MLPs' last linears: it makes their input anew.

    Args:
        model: A causal language model of a supported family.

    Raises:
        UnsupportedModelError: The family, or a module's class, has no rule.
        RuleNotFiredError: On leaving: a rule was passed by.
        ExciseError: In a forward pass: an odd number of rows.
    """

    def __init__(self, model: Any):
        super().__init__(model)

    def _install_rules(self, undo: ExitStack) -> None:
        view = self.view

        def hook(handle: Any) -> None:
            undo.callback(handle.remove)

        hook(view.embedding.register_forward_hook(_halves_hook))
        for path, norm in view.modules("rms_norm", "rms_norm_plus_one", "layer_norm"):
            rule = partial(_norm_hook, self._fire(path, "secant norm"))
            hook(norm.register_forward_hook(rule))
        for layer in view.layers:
            factors: dict[str, Tensor] | None = {} if view.family.gated else None
            fire = self._fire(view.path(layer.activation), "secant")
            hook(layer.activation.register_forward_hook(partial(_activation_hook, fire, factors)))
            if factors is not None:
                undo.callback(factors.clear)
                fire = self._fire(view.path(layer.mlp_out), "mean of the other factor")
                hook(layer.mlp_in[1].register_forward_hook(partial(_factor_hook, factors)))
                hook(layer.mlp_out.register_forward_pre_hook(partial(_gate_hook, fire, factors)))
            fire = self._fire(view.path(layer.attention), "secant attention")
            ACTIVE[layer.attention] = DifferenceAttention(fire)
            undo.callback(ACTIVE.pop, layer.attention, None)
        self._install_taps(undo)

    def _amount(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the share of the change that an activation has: all of it, in every layer."""
        return super()._amount(first_half(x) - second_half(x), first_half(grad))


def first_half(x: Tensor) -> Tensor:
    """Return the prompts' rows of a joined batch."""
    return x[: len(x) // 2]


def second_half(x: Tensor) -> Tensor:
    """Return the counterfactuals' rows of a joined batch."""
    return x[len(x) // 2 :]


def secant_slope(
    f: Callable[[Tensor], Tensor], x: Tensor, other: Tensor, smooth: bool = True
) -> Tensor:
    """Return `(f(x) - f(x')) / (x - x')`, and where the two are close the derivative between them.

    Args:
        f: An element-wise function.
        x: Where it is evaluated.
        other: The other end.
        smooth: Whether the secant of close values is better taken as a derivative. The slope of
            pieces of straight lines is exact at any distance.
    """
    change = x - other
    close = change.abs() <= (torch.finfo(x.dtype).eps ** (1 / 3) if smooth else 0.0)
    middle = ((x + other) / 2).detach().requires_grad_()
    with torch.enable_grad():
        (derivative,) = torch.autograd.grad(f(middle).sum(), middle)
    return torch.where(close, derivative, (f(x) - f(other)) / change.masked_fill(close, 1.0))


def logarithmic_mean(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return `(p - q) / (ln p - ln q)` from the logarithms; 0 where one of them is 0.

    As `max(p, q) (1 - exp(-a)) / a` with `a = |ln p - ln q|` nothing cancels.
    """
    apart = (log_p - log_q).abs()
    shrunk = torch.where(apart > 0, -torch.expm1(-apart) / apart, torch.ones_like(apart))
    largest = torch.maximum(log_p, log_q).exp()
    return torch.where(torch.isfinite(apart), largest * shrunk, torch.zeros_like(largest))


def secant_root(x: Tensor, other: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Say how the inverse root mean square of rows changes between two values.

    Returns:
        The mean of the two, and by how much it falls per rise of the mean square, (..., 1).
    """
    v, w = ((t.square().mean(-1, keepdim=True) + eps).sqrt() for t in (x, other))
    return (1 / v + 1 / w) / 2, 1 / (v * w * (v + w))


class _Activation(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, f: Any, smooth: bool, fire: Fire):
        ctx.save_for_backward(x)
        ctx.f, ctx.smooth, ctx.fire = f, smooth, fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x = full_precision(ctx.saved_tensors[0])
        ctx.fire()
        slope = secant_slope(ctx.f, first_half(x), second_half(x), ctx.smooth)
        return _joined(first_half(grads[0]) * slope, grads[0]), None, None, None, None


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, y: Tensor, fire: Fire):
        ctx.save_for_backward(a, b)
        ctx.fire = fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        ctx.fire()
        own = first_half(grads[0])
        a, b = (_joined(own * _middle(other), grads[0]) for other in reversed(ctx.saved_tensors))
        return a, b, None, None


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor | None, eps: float, centred: bool, fire: Fire
    ):
        ctx.save_for_backward(x, scale)
        ctx.eps, ctx.centred, ctx.fire = eps, centred, fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        x, scale = ctx.saved_tensors
        ctx.fire()
        x = full_precision(x)
        if ctx.centred:
            x = x - x.mean(-1, keepdim=True)
        grad = full_precision(first_half(grads[0]))
        if scale is not None:
            grad = grad * scale
        inverse_std, fall = secant_root(first_half(x), second_half(x), ctx.eps)
        middle = _middle(x)
        inner = (grad * middle).mean(-1, keepdim=True)
        grad = grad * inverse_std - 2 * fall * inner * middle
        if ctx.centred:
            grad = grad - grad.mean(-1, keepdim=True)
        return _joined(grad, grads[0]), None, None, None, None, None


@dataclass(frozen=True)
class DifferenceAttention:
    """The rules of one attention module: of both products, and of the softmax between them."""

    fire: Fire

    def attend(
        self, kernel: Any, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any
    ) -> Any:
        """Run the kernel, and attach the rule to what it returns, (batch, seq, heads, size)."""
        out, *rest = kernel(module, q, k, v, mask, **options)
        if flows(q):
            scaling = options.get("scaling")
            scale = q.shape[-1] ** -0.5 if scaling is None else scaling
            out = _Attention.apply(q, k, v, out.detach(), mask, scale, self.fire)
        return out, *rest


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, y: Tensor, mask: Any, scale: float, fire: Fire
    ):
        ctx.save_for_backward(q, k, v)
        ctx.mask, ctx.scale, ctx.fire = mask, scale, fire
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        ctx.fire()
        q, k, v = map(full_precision, ctx.saved_tensors)
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        logs = _log_pattern(ctx.scale * q @ k.transpose(-1, -2), ctx.mask)
        grad = full_precision(first_half(grads[0])).transpose(1, 2)
        weights = logarithmic_mean(first_half(logs), second_half(logs))
        on_pattern = weights * (grad @ _middle(v).transpose(-1, -2))
        share = on_pattern.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp_min(1e-30)
        on_scores = ctx.scale * (on_pattern - weights * share)
        on_q = on_scores @ _middle(k)
        on_k = on_scores.transpose(-1, -2) @ _middle(q)
        on_v = _middle(logs.exp()).transpose(-1, -2) @ grad
        on_k, on_v = (x.unflatten(1, (-1, group)).sum(2) for x in (on_k, on_v))
        found = (_joined(x, grads[0]) for x in (on_q, on_k, on_v))
        return *found, None, None, None, None


def _log_pattern(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return logarithms of the attention pattern, -inf where nothing is seen."""
    queries, keys = scores.shape[-2:]
    if mask is None:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(~seen.tril(keys - queries), -torch.inf)
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[..., :keys], -torch.inf)
    else:
        lowest = torch.finfo(mask.dtype).min
        scores = scores.masked_fill(mask[..., :keys] <= lowest, -torch.inf)
    return scores.log_softmax(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf)


def _middle(x: Tensor) -> Tensor:
    """Return the mean of prompt and counterfactual, in full precision."""
    return (full_precision(first_half(x)) + full_precision(second_half(x))) / 2


def _joined(first: Tensor, like: Tensor) -> Tensor:
    """Return a gradient of both halves that has nothing in the second."""
    first = first.to(like.dtype)
    return torch.cat([first, torch.zeros_like(first)])


def _norm_hook(fire: Fire, norm: Any, args: tuple[Tensor, ...], y: Tensor) -> Any:
    if not flows(x := args[0]):
        return None
    return _Norm.apply(x, y.detach(), *norm_parameters(norm), fire)


def _activation_hook(
    fire: Fire, factors: dict[str, Tensor] | None, module: Any, args: tuple[Tensor, ...], y: Tensor
) -> Any:
    if not flows(args[0]):
        return None
    smooth = kind_of(module) != "relu"
    activated = _Activation.apply(args[0], y.detach(), module.forward, smooth, fire)
    if factors is not None:
        factors["gate"] = activated
    return activated


def _factor_hook(factors: dict[str, Tensor], _linear: Any, _args: Any, y: Tensor) -> None:
    if flows(y):
        factors["value"] = y


def _halves_hook(_embedding: Any, _args: Any, embedded: Tensor) -> None:
    if len(embedded) % 2:
        raise ExciseError(
            f"{len(embedded)} rows are no prompts with as many counterfactuals behind them: give "
            "each prompt one, in the same batch"
        )


def _gate_hook(
    fire: Fire, factors: dict[str, Tensor], _linear: Any, args: tuple[Tensor, ...]
) -> Any:
    if not flows(args[0]):
        return None
    return (_Product.apply(factors.pop("gate"), factors.pop("value"), args[0].detach(), fire),)
