"""Scores of edges: what a writer adds to the residual stream times one reader's gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from ..core.families import LayerView, ModelView
from .graph import Graph
from .norms import LinearNorm
from .probe import Key, Probe
from .writers import attention_readers, by_head, head_outputs


Values = dict[Key, Tensor]


@dataclass(frozen=True)
class Norms:
    """The norms of a model as the linear maps that they were for the gradients."""

    inputs: Values
    """Where the gradients were taken."""
    now: Values
    before: Values
    constant_std: bool = False
    """Whether standard deviations are constants (under relevance rules), or differentiated."""
    between: bool = False
    """Whether each is the map from the difference of its two inputs to that of its outputs."""

    def linear(self, norm: nn.Module, key: Key) -> LinearNorm:
        """Return a norm as a linear map, given the key of its input."""
        if self.between:
            return LinearNorm.between(norm, self.now[key][:, None], self.before[key][:, None])
        return LinearNorm.at(norm, self.inputs[key][:, None], self.constant_std)

    def change(
        self, norm: nn.Module | None, key: Key, of: Callable[[Values], Tensor]
    ) -> Float[Tensor, "b parts t d"]:
        """Return how what a branch writes has changed, behind the norm that it may end with.

        The norm is the map that it was for the gradients, as it is for the branch's own score: so
        the edges out of a writer add up to the writer.

        Args:
            norm: The norm, if there is one.
            key: Of its input.
            of: Returns the parts that the branch writes in front of it.
        """
        parts = of(self.now) - of(self.before) if self.before else of(self.now)
        return parts if norm is None else self.linear(norm, key).forward(parts)


def edge_scores(
    view: ModelView,
    graph: Graph,
    probe: Probe,
    norms: Norms,
    writers: slice = slice(None),
) -> Float[Tensor, "b edges"]:
    """Score every edge of a batch after its backward pass.

    Gradients are known at the outputs of the query, key and value linears, where heads lie side by
    side; each head's (or KV group's) share is taken back through its own rows and the norm.

    Args:
        view: The model.
        graph: Its graph.
        probe: With gradients.
        norms: With what the components write now, and on the counterfactual prompts (or nothing).
        writers: Those whose edges are scored.

    Returns:
        Sums over positions, in the order of the true entries of `graph.is_edge`; 0 for edges of
        other writers.
    """
    embed = norms.change(None, ("embed", 0), lambda values: values["embed", 0])
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
            linear = norms.linear(norm, (place, index))
            rows = slice(first, min(n, last))
            written[:, rows] = linear.forward(written[:, rows])

    add(embed[:, None])
    for index, layer in enumerate(view.layers):
        norm = None
        if view.norm_first:
            norm = norms.linear(layer.attention_norm, ("attention_norm", index))
        for place, linear, units in attention_readers(view, layer):
            grad = probe.grads.get((place, index))
            if grad is None or n <= first:  # under constant patterns, or before the writers
                reader += units
                continue
            parts = by_head(linear.weight, grad, units)
            read(parts if norm is None else norm.backward(parts))
        heads = partial(_heads, view, layer, index)
        add(norms.change(layer.attention_out_norm, ("attention_out_norm", index), heads))
        pass_norm("attention_norm", index)
        if n > first:
            read(probe.grads["read", index][:, None])
        else:
            reader += 1
        mlp = partial(_mlp, index)
        add(norms.change(layer.mlp_out_norm, ("mlp_out_norm", index), mlp))
        pass_norm("mlp_norm", index)
    read(probe.grads["end", 0][:, None])
    return scores[:, graph.is_edge]


def _heads(view: ModelView, layer: LayerView, index: int, values: Values) -> Tensor:
    return head_outputs(view, layer, values["z", index])


def _mlp(index: int, values: Values) -> Tensor:
    return values["mlp", index][:, None]
