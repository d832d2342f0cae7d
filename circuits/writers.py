"""What each writer puts into the residual stream, and how a stream is put together from it."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.families import LayerView, ModelView, plain_linear


def head_outputs(
    view: ModelView, layer: LayerView, z: Float[Tensor, "b t width"]
) -> Float[Tensor, "b heads t d"]:
    """Return what each head writes, before a norm between attention and stream.

    Args:
        view: The model.
        layer: One of its layers.
        z: Input of the attention's output linear: all heads side by side.
    """
    weight = plain_linear(layer.attention_out, view).weight  # (d, heads * head_dim)
    per_head = weight.view(-1, view.n_heads, view.head_dim)  # (d, H, D)
    parts = z.unflatten(-1, (view.n_heads, view.head_dim))  # (B, T, H, D)
    return torch.einsum("bthe,dhe->bhtd", parts, per_head)


def by_head(weight: Tensor, grad: Float[Tensor, "b t out"], heads: int) -> Tensor:
    """Return each head's share of the gradient at a linear's input, (b, heads, t, d).

    Args:
        weight: (heads * head_dim, d) of the linear.
        grad: Gradient of its output.
        heads: Heads or KV groups side by side in the output.
    """
    return torch.einsum(
        "bthe,hed->bhtd", grad.unflatten(-1, (heads, -1)), weight.unflatten(0, (heads, -1))
    )


def readable_weights(view: ModelView) -> None:
    """Refuse a model whose attention weights cannot be read, before any work is done.

    Raises:
        ExciseError: Names a quantised linear.
    """
    for linear in _attention_linears(view):
        plain_linear(linear, view)


def weights_are_readable(view: ModelView) -> bool:
    """Say whether edges can be looked at in a model."""
    return all(type(linear) is nn.Linear for linear in _attention_linears(view))


def _attention_linears(view: ModelView) -> Iterator[nn.Module]:
    for layer in view.layers:
        yield from (*layer.query_key[:2], layer.value, layer.attention_out)


def attention_readers(view: ModelView, layer: LayerView) -> tuple[tuple[str, nn.Linear, int], ...]:
    """Return place, linear and number of units of a layer's queries, keys and values."""
    query, key = (plain_linear(module, view) for module in layer.query_key[:2])
    return (
        ("q", query, view.n_heads),
        ("k", key, view.n_kv_heads),
        ("v", layer.value, view.n_kv_heads),
    )
