"""How much memory a search will need, counted before it starts."""

from typing import TYPE_CHECKING, Any

from ..core.families import ModelView
from ..core.memory import held_with
from .circuit import RESAMPLES
from .graph import Graph
from .levels import Shape, get_level
from .methods import get_method


if TYPE_CHECKING:
    from .search import Parts, Search


def planned_peak(model: Any, parts: "Parts", search: "Search", batch_size: int) -> int:
    """Return the bytes that a search will hold at most, the model included.

    Counted are the activations of one batch with gradients (or, for edges, what every writer
    writes), the replacements of the prompts to choose and to test on, and per-sample scores.

    Args:
        model: The model.
        parts: The prompts.
        search: How it is looked for.
        batch_size: Prompts per pass.
    """
    view = ModelView.of(model)
    size = view.embedding.weight.element_size()
    graph, layers = Graph.of(view), len(view.layers)
    longest = max(pairs.longest for pairs in vars(parts).values())
    tokens = batch_size * longest
    written = view.n_heads * view.head_dim + view.d_mlp + view.d_model  # z, hidden, MLP
    layer = 4 * view.n_heads * view.head_dim + 4 * view.d_mlp + 6 * view.d_model
    rows = 2 if get_method(search.method).multipliers else 1  # prompts and counterfactuals at once
    activations = rows * tokens * layers * (layer + 2 * written) * size
    if rows == 2:  # attention patterns and their gradients are made anew
        activations += 6 * rows * tokens * view.n_heads * longest * size
    if search.level != "weights":  # of nodes, edges are drawn
        streams = len(graph.writers) * tokens * view.d_model * size
        activations += (3 if search.refined else 2) * streams
    # the prompts to choose and to test on, and half of the latter under two ablations
    replaced = sum(
        len(pairs) * pairs.longest for pairs in (parts.validation, parts.test, parts.test)
    )
    replacements = 2 * replaced * layers * written * size
    n = get_level(search.level).count(Shape.of(view))
    if search.level == "weights":
        scores = n * (3 * 4 + size + 16)  # scores, sorted, of rows; weights put by; choices
    else:
        scores = (2 * len(parts.train) + 2 * RESAMPLES) * n * 4
    vocabulary = model.config.vocab_size * 4 * (2 * batch_size + len(parts.test))
    return held_with(model) + activations + replacements + scores + vocabulary


def exact_passes(model: Any, parts: "Parts", search: "Search", batch_size: int) -> int:
    """Return how many forward passes exact patching takes; 0 for other methods."""
    if not get_method(search.method).exact:
        return 0
    n = get_level(search.level).count(Shape.of(ModelView.of(model)))
    return (n + 1) * -(-len(parts.train) // batch_size)
