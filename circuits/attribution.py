"""Scores of heads, MLPs, hidden neurons and edges, from the same few passes, per sample."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.data import Batch
from ..core.errors import ExciseError, finer
from ..core.families import ModelView
from ..core.frozen import frozen
from ..lrp.difference import DifferenceScope, first_half, second_half
from ..lrp.rules import full_precision
from ..lrp.scope import LRPScope
from .edges import Norms, edge_scores
from .graph import Graph
from .methods import CircuitMethod, get_method
from .pairs import Pairs, joined, logit_difference, only_last
from .patching import patch
from .probe import Key, Probe, run
from .scores import Attribution
from .writers import head_outputs, readable_weights


LEVELS = ("nodes", "neurons", "edges")


def attribute(
    model: Any,
    pairs: Pairs,
    method: str | CircuitMethod = "relp",
    *,
    nodes: bool = True,
    neurons: bool = False,
    edges: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Attribution:
    """Score the components of a model on prompts.

    Node and neuron scores are `(a - a') g`, summed over positions, of the activation `a` that a
    component writes, its counterfactual `a'` (zero for methods without) and the gradient `g` of
    the logit difference under the method's rules. The score of an edge is the same product of
    what the writer adds to the residual stream and the gradient that passes through this one
    reader: edge attribution patching (Syed et al. 2023, arXiv 2310.10348), here with KV groups
    kept whole, through LayerNorm and RMSNorm, and on the unmodified model.

    Args:
        model: A causal language model of a supported family.
        pairs: Prompts with counterfactuals (for methods that need them).
        method: A name of `CIRCUIT_METHODS`, or one of your own.
        nodes: Whether to score heads and MLPs; likewise `neurons` and `edges`.
        neurons: MLP hidden units.
        edges: Every writer to every reader.
        batch_size: Prompts per pass.
        seed: Of the method `random`.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        Per-sample scores, float32 on the CPU.

    Raises:
        ExciseError: Unknown method, no counterfactuals where the method needs them, quantised
            layers where edges are asked for, or a model whose output is not finite.
    """
    chosen = get_method(method) if isinstance(method, str) else method
    if not (nodes or neurons or edges):
        raise ExciseError(f"nothing to score: ask for some of {', '.join(LEVELS)}")
    if (chosen.difference or chosen.multipliers) and pairs.counterfactual is None:
        raise ExciseError(
            f"method {chosen.name!r} needs counterfactual prompts: add them, or use 'lrp'"
        )
    view = ModelView.of(model)
    pairs.check(model.config)
    scorer = _Scorer(view, chosen, nodes, neurons, edges)
    if chosen.random:
        return scorer.random(len(pairs), seed)
    if chosen.exact:
        return patch(view, pairs, nodes=nodes, neurons=neurons, edges=edges,
                     batch_size=batch_size, progress=progress)  # fmt: skip
    parts = []
    with tqdm(total=len(pairs), desc=f"scoring ({chosen.name})", unit="prompt",
              disable=None if progress else True) as bar:  # fmt: skip
        for clean, other in pairs.batches(batch_size, view.embedding.weight.device):
            parts.append(scorer.score(clean, other))
            bar.update(len(clean))
    return Attribution.joined(parts)


@dataclass
class _Scorer:
    """One method at work on one model."""

    view: ModelView
    method: CircuitMethod
    nodes: bool
    neurons: bool
    edges: bool
    graph: Graph = field(init=False)

    def __post_init__(self):
        self.graph = Graph.of(self.view)
        if self.edges:
            readable_weights(self.view)

    def score(self, clean: Batch, other: Batch | None) -> Attribution:
        """Score one batch."""
        before: dict[Key, Tensor] = {}
        probe = Probe(self.view, self.edges)
        if self.method.multipliers:
            assert other is not None
            return self._shared_out(probe, clean, other)
        with self._still(), probe:
            if other is not None and self.method.difference:
                before = self._look(probe, other)
            if self.method.contrast is None:
                return self._norms(self._look(probe, clean))
            if not self.method.points:
                self._backward(probe, clean)
                return self._collected(probe, dict(probe.values), before)
            now = self._look(probe, clean)
            found = None
            for site in self._sites():
                for point in self.method.points:
                    value = before[site] + point * (now[site] - before[site])
                    probe.replaced = {site: value}
                    self._backward(probe, clean)
                    part = self._collected(probe, now, before, site)
                    found = part if found is None else found.plus(part)
            probe.replaced = {}
        assert found is not None
        return found.times(1.0 / len(self.method.points))

    def _shared_out(self, probe: Probe, clean: Batch, other: Batch) -> Attribution:
        """Score one batch by multipliers: prompts and counterfactuals go through as one."""
        with DifferenceScope(self.view.model), probe:
            self._backward(probe, joined(clean, other))
            now, before = (
                {key: half(x) for key, x in probe.values.items()}
                for half in (first_half, second_half)
            )
            probe.grads = {key: first_half(grad) for key, grad in probe.grads.items()}
            return self._collected(probe, now, before)

    def _sites(self) -> list[Key]:
        """Return the places that go along the path, each by itself."""
        if self.method.path == "embeddings":
            return [("embed", 0)]
        layers = range(len(self.view.layers))
        return [("embed", 0), *((place, i) for i in layers for place in ("z", "hidden"))]

    @contextmanager
    def _still(self) -> Iterator[None]:
        """Put the method's rules on the model, or only hold it still."""
        rules = self.method.rules
        with LRPScope(self.view.model, rules) if rules else frozen(self.view):
            yield

    def _look(self, probe: Probe, batch: Batch) -> dict[Key, Tensor]:
        """Return what a pass without gradients writes."""
        probe.start(batch)
        with torch.no_grad():
            run(self.view, batch)
        return probe.values

    def _backward(self, probe: Probe, clean: Batch) -> None:
        probe.start(clean)
        values = logit_difference(run(self.view, clean), only_last(clean))
        if not bool(values.isfinite().all()):
            dtype = self.view.embedding.weight.dtype
            raise ExciseError(f"the model's output is NaN or infinite here: {finer(dtype)}")
        values.sum().backward()

    def _collected(
        self,
        probe: Probe,
        now: dict[Key, Tensor],
        before: dict[Key, Tensor],
        site: Key | None = None,
    ) -> Attribution:
        """Multiply what components write, `now` less `before`, with the probe's gradients.

        Where paths lead through activations, only what is written at the site counts.
        """
        view, layers = self.view, range(len(self.view.layers))
        own = site if self.method.path == "activations" else None

        def product(place: str, index: int) -> Tensor:
            x, grad = full_precision(now[place, index]), probe.grads.get((place, index))
            at = ("hidden" if place == "mlp" else place), index
            if grad is None or own not in (None, at):
                return torch.zeros_like(x)
            if before:
                x = x - full_precision(before[place, index])
            return x * full_precision(grad)

        heads = mlps = neurons = edges = None
        if self.nodes:
            per_head = [product("z", i).unflatten(-1, (view.n_heads, -1)) for i in layers]
            heads = torch.stack([x.sum((1, 3)) for x in per_head], 1)
            mlps = torch.stack([product("mlp", i).sum((1, 2)) for i in layers], 1)
        if self.neurons:
            neurons = torch.stack([product("hidden", i).sum(1) for i in layers], 1)
        if self.edges:
            norms = Norms(
                probe.values, now, before, self.method.rules is not None, self.method.multipliers
            )
            writers = slice(None) if own is None else self._writers_at(own)
            edges = edge_scores(view, self.graph, probe, norms, writers)
        return Attribution(*(None if t is None else t.float().cpu()
                             for t in (heads, mlps, neurons, edges)))  # fmt: skip

    def _writers_at(self, site: Key) -> slice:
        place, index = site
        if place == "embed":
            return slice(0, 1)
        first = self.graph.writer_index["head", index, 0]
        mlp = self.graph.writer_index["mlp", index]
        return slice(first, mlp) if place == "z" else slice(mlp, mlp + 1)

    def _norms(self, now: dict[Key, Tensor]) -> Attribution:
        """Score by Euclidean norms over positions: of edges the writer's, at every reader."""
        view, layers = self.view, range(len(self.view.layers))
        heads = torch.stack([
            head_outputs(view, view.layers[i], now["z", i]).square().sum((2, 3)) for i in layers
        ], 1).sqrt()  # fmt: skip
        mlps = torch.stack([now["mlp", i].square().sum((1, 2)) for i in layers], 1).sqrt()
        neurons = torch.stack([now["hidden", i].square().sum(1) for i in layers], 1).sqrt()
        found = Attribution(heads.float().cpu(), mlps.float().cpu(), neurons.float().cpu())
        edges = None
        if self.edges:
            embed = now["embed", 0].square().sum((1, 2)).sqrt().float().cpu()[:, None]
            writers = torch.cat([embed, found.nodes], 1)
            at = self.graph.is_edge.nonzero()[:, 0]
            edges = writers[:, at]
        return self._asked(replace(found, edges=edges))

    def random(self, n: int, seed: int) -> Attribution:
        """Return seeded normal numbers."""
        draw = torch.Generator().manual_seed(seed)
        view, layers = self.view, len(self.view.layers)
        make: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
        return self._asked(
            Attribution(make(layers, view.n_heads).expand(n, -1, -1),
                        make(layers).expand(n, -1), make(layers, view.d_mlp).expand(n, -1, -1),
                        make(self.graph.n_edges).expand(n, -1))
        )  # fmt: skip

    def _asked(self, found: Attribution) -> Attribution:
        return Attribution(
            found.heads if self.nodes else None,
            found.mlps if self.nodes else None,
            found.neurons if self.neurons else None,
            found.edges if self.edges else None,
        )
