"""Exact activation patching: replace one component at a time, and see what the answer loses."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ..core.families import ModelView
from .ablation import Ablator, Kept
from .graph import Graph
from .pairs import Pairs, logit_difference, only_last
from .scores import Attribution


def patch(
    view: ModelView,
    pairs: Pairs,
    *,
    nodes: bool = True,
    neurons: bool = False,
    edges: bool = False,
    batch_size: int = 16,
    progress: bool = False,
) -> Attribution:
    """Measure each component's effect: the logit difference less that without the component.

    One pass per component and batch, so that it is the ground truth of the fast methods and
    nothing for large models: a component is replaced by its counterfactual value in an otherwise
    clean run; an edge in one reader only.

    Args:
        view: The model.
        pairs: Prompts with counterfactuals.
        nodes: Whether to patch heads and MLPs; likewise `neurons` and `edges`.
        neurons: MLP hidden units.
        edges: Every writer to every reader.
        batch_size: Prompts per pass.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        Per-sample effects, float32 on the CPU.
    """
    ablator = Ablator(view.model, pairs, "resample", batch_size=batch_size)
    graph = Graph.of(view)
    layers = len(view.layers)
    jobs: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Kept]]] = {}
    if nodes:
        jobs["heads"] = (layers, view.n_heads), lambda keep: Kept(heads=keep)
        jobs["mlps"] = (layers,), lambda keep: Kept(mlps=keep)
    if neurons:
        jobs["neurons"] = (layers, view.d_mlp), lambda keep: Kept(neurons=keep)
    if edges:
        jobs["edges"] = (graph.n_edges,), lambda keep: Kept(edges=expand(graph, keep))
    clean = effect(ablator, None)
    total = sum(torch.Size(shape).numel() for shape, _ in jobs.values())
    found: dict[str, Tensor] = {}
    with tqdm(total=total, desc="patching", disable=None if progress else True) as bar:
        for name, (shape, kept) in jobs.items():
            columns = []
            for index in range(torch.Size(shape).numel()):
                keep = torch.ones(shape, dtype=torch.bool)
                keep.view(-1)[index] = False
                columns.append(clean - effect(ablator, kept(keep)))
                bar.update()
            found[name] = torch.stack(columns, 1).unflatten(1, shape)
    return Attribution(**found)


def effect(ablator: Ablator, kept: Kept | None) -> Float[Tensor, " samples"]:
    """Return the logit difference of each prompt when only some components are kept."""
    parts = [logit_difference(x, only_last(batch)) for batch, x in ablator.run(kept)]
    return torch.cat(parts).float().cpu()


def expand(graph: Graph, flat: Tensor) -> Tensor:
    """Place one value per edge into an array of writers by readers; False or 0 elsewhere."""
    dense = torch.zeros(graph.is_edge.shape, dtype=flat.dtype)
    dense[graph.is_edge] = flat
    return dense
