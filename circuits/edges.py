"""Scores of edges: what a writer adds to the residual stream times one reader's gradient."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from ..core.families import LayerView, ModelView
from .graph import Graph
from .norms import LinearNorm
from .probe import Key, Probe
from .writers import attention_readers, by_head, head_outputs, out_norm, through


Values = dict[Key, Tensor]
Part = Callable[[ModelView, LayerView, int, Values], Tensor]


def edge_scores(
    view: ModelView,
    graph: Graph,
    probe: Probe,
    now: Values,
    before: Values,
    linear_norm: Callable[[nn.Module, Key], LinearNorm],
    writers: slice = slice(None),
) -> Float[Tensor, "b edges"]:
    """Score every edge of a batch after its backward pass.

    Gradients are known at the outputs of the query, key and value linears, where heads lie side by
    side; each head's (or KV group's) share is taken back through its own rows and the norm.

    Args:
        view: The model.
        graph: Its graph.
        probe: With gradients.
        now: What the components write.
        before: What they write on the counterfactual prompts; empty for nothing.
        linear_norm: Returns a norm as the linear map that it was for the gradients, given the key
            of its input.
        writers: Those whose edges are scored.

    Returns:
        Sums over positions, in the order of the true entries of `graph.is_edge`; 0 for edges of
        other writers.
    """
    embed = now["embed", 0] - before["embed", 0] if before else now["embed", 0]
    b, t, d = embed.shape
    scores = embed.new_zeros(b, len(graph.writers), len(graph.readers))
    written = embed.new_empty(b, len(graph.writers), t, d)
    n, reader = 0, 0
    first, last, _ = writers.indices(len(graph.writers))

    def add(parts: Float[Tensor, "b parts t d"]) -> None:
        nonlocal n
        written[:, n : n + parts.shape[1]] = parts
        n += parts.shape[1]

    def read(grads: Float[Tensor, "b units t d"]) -> None:
        nonlocal reader
        units = slice(reader, reader + grads.shape[1])
        rows = slice(first, min(n, last))
        scores[:, rows, units] = written[:, rows].flatten(2) @ grads.flatten(2).transpose(1, 2)
        reader = units.stop

    def pass_norm(place: str, index: int) -> None:
        """Take all that was written so far behind a norm that follows the residual addition."""
        if not view.norm_first:
            layer = view.layers[index]
            norm = layer.attention_norm if place == "attention_norm" else layer.mlp_norm
            linear = linear_norm(norm, (place, index))
            rows = slice(first, min(n, last))
            written[:, rows] = linear.forward(written[:, rows])

    add(embed[:, None])
    for index, layer in enumerate(view.layers):
        norm = None
        if view.norm_first:
            norm = linear_norm(layer.attention_norm, ("attention_norm", index))
        for place, linear, units in attention_readers(view, layer):
            grad = probe.grads.get((place, index))
            if grad is None or n <= first:  # under constant patterns, or before the writers
                reader += units
                continue
            parts = by_head(linear.weight, grad, units)
            read(parts if norm is None else norm.backward(parts))
        add(_change(_heads, view, index, now, before))
        pass_norm("attention_norm", index)
        if n > first:
            read(probe.grads["read", index][:, None])
        else:
            reader += 1
        add(_change(_mlp, view, index, now, before))
        pass_norm("mlp_norm", index)
    read(probe.grads["end", 0][:, None])
    return scores[:, graph.is_edge]


def _change(what: Part, view: ModelView, index: int, now: Values, before: Values) -> Tensor:
    parts = what(view, view.layers[index], index, now)
    return parts - what(view, view.layers[index], index, before) if before else parts


def _heads(view: ModelView, layer: LayerView, index: int, values: Values) -> Tensor:
    parts = head_outputs(view, layer, values["z", index])
    if layer.attention_out_norm is None:
        return parts
    return through(
        out_norm(layer.attention_out_norm, values["attention_out_norm", index], True), parts
    )


def _mlp(_view: ModelView, layer: LayerView, index: int, values: Values) -> Tensor:
    part = values["mlp", index][:, None]
    if layer.mlp_out_norm is None:
        return part
    return through(out_norm(layer.mlp_out_norm, values["mlp_out_norm", index], True), part)
