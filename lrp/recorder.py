"""Record what components contribute while gradients pass by.

Taps are autograd functions at the few places where every component can be read off: the input of
the attention's output projection (heads), the input of the MLP's last linear (hidden neurons), the
embedding's output (tokens) and each linear layer (weights). A tap reduces its gradient at once, so
nothing is kept beyond the activations that the backward pass holds anyway.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from ..core.data import Batch
from ..core.families import ModelView
from .methods import Aggregate, Method
from .rules import full_precision


Sink = Callable[[Tensor, Tensor], None]

_CHUNK = 1 << 18
"""Elements of a temporary: small enough to be reused, where fresh memory costs page faults."""


class Tap(Function):
    """Hand a tensor and its gradient to a sink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sink: Sink):
        ctx.save_for_backward(x)
        ctx.sink = sink
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        ctx.sink(ctx.saved_tensors[0], grads[0])
        return grads[0], None


class LinearTap(Function):
    """Hand a linear layer's input and the gradient of its output to a sink."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, sink: Sink):
        ctx.save_for_backward(x)
        ctx.sink = sink
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        ctx.sink(ctx.saved_tensors[0], grads[0])
        return grads[0], None, None


class Recorder:
    """Collect per-sample scores of heads, neurons and tokens, and sums for weights.

    Use as a context manager around forward and backward passes of one batch, inside the LRP scope
    if the method has rules.

    Args:
        view: The model.
        method: Supplies the contribution of an activation and its gradient.
        aggregate: How token contributions become a sample's value.
        heads: Whether to record them; likewise `neurons` and `tokens`.
        weights: Linears whose weights are scored, by path.
        skip_first_token: Leave each sample's first token (often an attention sink) out of
            everything but the token scores.
    """

    def __init__(
        self,
        view: ModelView,
        method: Method,
        aggregate: Aggregate,
        *,
        heads: bool,
        neurons: bool,
        tokens: bool,
        weights: Mapping[str, nn.Module],
        skip_first_token: bool = False,
    ):
        self.view, self.method, self.aggregate = view, method, aggregate
        self.heads, self.neurons, self.tokens = heads, neurons, tokens
        self.weights = weights
        self.skip_first_token = skip_first_token
        self.weight_sums: dict[str, Tensor] = {}
        self.alpha = 1.0
        self._batch: Batch | None = None
        self._found: dict[tuple[str, int], Tensor] = {}
        self._clean: dict[tuple[str, int], Tensor] = {}
        self._keeping_clean = False
        self._undo = ExitStack()

    def start(self, batch: Batch) -> None:
        """Begin a batch: later passes add to its scores until the next start."""
        self._batch = batch
        self._found.clear()
        self._clean.clear()

    def keep_clean(self, keeping: bool) -> None:
        """Store activations of the coming pass, to multiply later gradients with."""
        self._keeping_clean = keeping

    def per_sample(self, component: str) -> Tensor:
        """Return the batch's scores, float32 on the CPU.

        Args:
            component: `heads` (batch, layers, heads), `neurons` (batch, layers, d_mlp), `tokens`
                (batch, seq) or `positions` (batch, seq; zeros where the family has none).
        """
        if component in ("tokens", "positions"):
            assert self._batch is not None
            zeros = torch.zeros(self._batch.input_ids.shape)
            return self._found.get((component, 0), zeros).detach().float().cpu()
        layers = range(len(self.view.layers))
        scores = torch.stack([self._found[component, i].detach().cpu() for i in layers], 1)
        if self.method.contribution is None:
            return scores.sqrt().float()
        return (scores.abs() if self.aggregate == "abs" else scores).float()

    def __enter__(self) -> "Recorder":
        with ExitStack() as undo:
            self._install(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _install(self, undo: ExitStack) -> None:
        def hook(handle: Any) -> None:
            undo.callback(handle.remove)

        hook(self.view.embedding.register_forward_hook(self._embedding_hook))
        if self.tokens and self.view.positions is not None:
            hook(self.view.positions.register_forward_hook(self._position_hook))
        for index, layer in enumerate(self.view.layers):
            if self.heads:
                sink = partial(self._add, "heads", index)
                hook(layer.attention_out.register_forward_pre_hook(partial(self._tap_hook, sink)))
            if self.neurons:
                sink = partial(self._add, "neurons", index)
                hook(layer.mlp_out.register_forward_pre_hook(partial(self._tap_hook, sink)))
        for path, linear in self.weights.items():
            rule = partial(self._linear_hook, partial(self._add_weight, path))
            # before the epsilon rule, whose gradient the weights need
            hook(linear.register_forward_hook(rule, prepend=True))

    def _tap_hook(self, sink: Sink, _linear: nn.Module, args: tuple[Tensor, ...]) -> Any:
        x = args[0]
        if self.method.contribution is None or self._keeping_clean:
            sink(x, x)
            return None
        return Tap.apply(x, sink)

    def _linear_hook(self, sink: Sink, _m: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Any:
        if self.method.contribution is None:
            sink(args[0], y)
            return None
        return LinearTap.apply(y, args[0].detach(), sink)

    def _embedding_hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Any:
        if self.method.contribution is None:
            return None
        if self.alpha != 1.0:
            output = (output.detach() * self.alpha).requires_grad_()
        return Tap.apply(output, partial(self._add_token, "tokens")) if self.tokens else output

    def _position_hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Any:
        if self.method.contribution is None or self.method.steps:
            return None
        if not output.requires_grad and torch.is_grad_enabled():
            output = output.requires_grad_()
        return Tap.apply(output, partial(self._add_token, "positions"))

    def _add_token(self, component: str, x: Tensor, grad: Tensor) -> None:
        contribution = self.method.contribution
        assert contribution is not None
        x, grad = full_precision(x) / self.alpha, full_precision(grad)
        self._accumulate((component, 0), contribution(x, grad).sum(-1))

    def _add(self, component: str, index: int, x: Tensor, grad: Tensor) -> None:
        assert self._batch is not None
        x, grad = x.detach(), grad.detach()
        key = (component, index)
        if self._keeping_clean:
            self._clean[key] = x
            return
        x = self._clean.get(key, x).view(*self._batch.input_ids.shape, -1)
        grad = grad.view(x.shape)  # OPT flattens batch and sequence inside its MLP
        kept = self._kept(x)
        rows = max(1, _CHUNK // x[0].numel())
        parts = []
        for start in range(0, len(x), rows):  # in pieces, so that temporaries stay small
            piece = slice(start, start + rows)
            scores = self._contributions(x[piece], grad[piece])
            if component == "heads":
                scores = scores.unflatten(-1, (self.view.n_heads, -1)).sum(-1)  # (B, T, H)
            if self.aggregate == "square" and self.method.contribution is not None:
                scores = scores.square_()
            if kept is not None:
                scores = scores * kept[piece, :, None]
            parts.append(scores.sum(1))
        self._accumulate(key, torch.cat(parts))

    def _contributions(self, x: Tensor, grad: Tensor) -> Tensor:
        x, grad = full_precision(x), full_precision(grad)
        return self.method.contribution(x, grad) if self.method.contribution else x.square()

    def _add_weight(self, path: str, x: Tensor, grad: Tensor) -> None:
        """Add what a batch says about one weight matrix: sums of outer products over tokens."""
        assert self._batch is not None
        shape = self._batch.input_ids.shape
        x, grad = x.detach().view(*shape, -1), grad.detach().view(*shape, -1)
        if (kept := self._kept(x)) is not None:
            x = x * kept[..., None].to(x.dtype)
        total = self.weight_sums.get(path)
        if self.method.contribution is None:
            norms = full_precision(x).square().sum((0, 1))
            total = norms if total is None else total.add_(norms)
        elif self.aggregate == "abs":
            for row in range(len(x)):
                amount = _add_outer(None, grad[row], x[row]).abs_()
                total = amount if total is None else total.add_(amount)
        else:
            square = self.aggregate == "square"
            total = _add_outer(total, grad.flatten(0, 1), x.flatten(0, 1), square)
        if total is not None:
            self.weight_sums[path] = total

    def _kept(self, like: Tensor) -> Tensor | None:
        """Return the weight of each position (batch, seq), or None where all count."""
        assert self._batch is not None
        if not self.skip_first_token and self.method.contribution is not None:
            return None  # padding has no gradient
        kept = self._batch.attention_mask
        if self.skip_first_token:
            kept = kept.scatter(1, self._batch.first[:, None], 0)
        return kept.to(like)

    def _accumulate(self, key: tuple[str, int], amount: Tensor) -> None:
        found = self._found.get(key)
        self._found[key] = amount if found is None else found + amount


def _add_outer(
    total: Float[Tensor, "out in"] | None,
    grad: Float[Tensor, "n out"],
    x: Float[Tensor, "n in"],
    square: bool = False,
) -> Float[Tensor, "out in"]:
    """Add the sum over n of `grad x^T`, or of the squared factors, to a float32 total in place.

    bfloat16 on a GPU is multiplied as it is: its range is float32's, and the kernel sums in
    float32. Elsewhere half precision is converted first.
    """
    if not (grad.is_cuda and grad.dtype == torch.bfloat16):
        grad, x = full_precision(grad), full_precision(x)
    if square:
        grad, x = grad.square(), x.square()
    if total is not None and total.dtype == grad.dtype:
        return total.addmm_(grad.T, x)
    amount = full_precision(grad.T @ x)
    return amount if total is None else total.add_(amount)
