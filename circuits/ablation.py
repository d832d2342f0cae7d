"""Run a model with only some of its components: the rest is replaced by what carries nothing.

What replaces a component is its value on the counterfactual prompt (`resample`), its mean over
counterfactual prompts and positions (`mean`), or nothing at all (`zero`). Nodes are replaced where
they write. An edge is replaced where it is read: each reader gets its own copy of the residual
stream, in which writers whose edge is cut have written their replacement.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..core.data import Batch
from ..core.errors import ExciseError, unknown_name
from ..core.families import ModelView
from ..core.frozen import frozen
from ..lrp.scope import LRPScope, Variant
from .edge_run import EdgeRun
from .pairs import Pairs, logit_difference, only_last
from .probe import Key, Probe, run
from .weights import only_weights


Ablation = Literal["resample", "mean", "zero"]
ABLATIONS: dict[Ablation, str] = {
    "resample": "its value on the counterfactual prompt",
    "mean": "its mean over counterfactual prompts and positions",
    "zero": "nothing",
}

_PLACES = ("embed", "z", "hidden", "mlp")


@dataclass(frozen=True)
class Kept:
    """Which components a run keeps; None keeps all of a kind.

    The embedding is always there as a node; its edges can be cut.
    """

    heads: Bool[Tensor, "layers heads"] | None = None
    mlps: Bool[Tensor, " layers"] | None = None
    neurons: Bool[Tensor, "layers d_mlp"] | None = None
    edges: Bool[Tensor, "writers readers"] | None = None
    weights: Bool[Tensor, " weights"] | None = None
    """Of all linears in the layers, one after the other; the others are zero."""


@dataclass(frozen=True)
class Prepared:
    """A batch with what replaces its components."""

    batch: Batch
    values: Mapping[Key, Tensor]
    """Replacements by place and layer, each broadcast to the batch; empty means zero."""


class Ablator:
    """Prompts made ready once, to be run with many different circuits.

    Args:
        model: A causal language model of a supported family.
        pairs: The prompts.
        ablation: What replaces a component that is cut.
        reference: Prompts whose counterfactuals give the means; default: the prompts themselves.
        batch_size: Prompts per pass.

    Raises:
        ExciseError: An unknown ablation, or one that needs counterfactuals that are not there.
    """

    def __init__(
        self,
        model: Any,
        pairs: Pairs,
        ablation: Ablation = "resample",
        reference: Pairs | None = None,
        batch_size: int = 16,
    ):
        if ablation not in ABLATIONS:
            raise unknown_name("ablation", ablation, ABLATIONS)
        reference = reference or pairs
        if ablation != "zero" and None in (pairs.counterfactual, reference.counterfactual):
            raise ExciseError(
                f"ablation {ablation!r} needs counterfactual prompts: add them, or use 'zero'"
            )
        self.view, self.ablation, self.pairs = ModelView.of(model), ablation, pairs
        self.batches: list[Prepared] = []
        device = self.view.embedding.weight.device
        means = self._means(reference, batch_size) if ablation == "mean" else {}
        for clean, other in pairs.batches(batch_size, device):
            values: Mapping[Key, Tensor] = means
            if ablation == "resample":
                assert other is not None
                values = self._values(other)
            self.batches.append(Prepared(clean, values))

    def run(self, kept: Kept | None = None) -> list[tuple[Batch, Tensor]]:
        """Return each batch with the logits behind its last tokens, (batch, 1, vocab).

        The model is as before when this returns or raises.

        Args:
            kept: What stays; None runs the model as it is.
        """
        kept = kept or Kept()
        whole = nullcontext() if kept.weights is None else only_weights(self.view, kept.weights)
        found = []
        with torch.no_grad(), frozen(self.view), whole:
            for prepared in self.batches:
                with self._cut(prepared, kept):
                    found.append((prepared.batch, run(self.view, prepared.batch)))
        return found

    @contextmanager
    def _cut(self, prepared: Prepared, kept: Kept) -> Iterator[None]:
        with ExitStack() as undo:
            for handle in _cut_nodes(
                self.view, prepared.values, prepared.batch.input_ids.shape, kept
            ):
                undo.callback(handle.remove)
            if kept.edges is not None:
                shape = prepared.batch.input_ids.shape
                for handle in EdgeRun(self.view, prepared.values, shape, kept.edges).hooks():
                    undo.callback(handle.remove)
            yield

    def gate_gradients(self, kept: Kept, rules: Variant | None) -> Kept:
        """Return how the answer would change with each component, from where a circuit stands.

        Each component has a gate between its replacement (0) and what it writes in this run (1),
        and this is the mean derivative of the logit difference by the gates, under relevance
        rules if there are any. Of a kept component it estimates what cutting it costs, of another
        one what adding it gains.

        Args:
            kept: The circuit.
            rules: Relevance rules on the backward pass.

        Returns:
            Floats in place of choices, for the kinds of components that `kept` speaks of.
        """
        gates = Kept(*(
            None if t is None else t.to(self.view.embedding.weight).requires_grad_()
            for t in vars(kept).values()
        ))  # fmt: skip
        still = LRPScope(self.view.model, rules) if rules else frozen(self.view)
        with still:
            for prepared in self.batches:
                with self._cut(prepared, gates):  # a checkpointed layer runs again, backward
                    logits = run(self.view, prepared.batch)
                    values = logit_difference(logits, only_last(prepared.batch))
                    (values.sum() / len(self.pairs)).backward()
        return Kept(*(None if t is None else _grad(t) for t in vars(gates).values()))

    def _values(self, batch: Batch) -> dict[Key, Tensor]:
        probe = Probe(self.view)
        with torch.no_grad(), frozen(self.view), probe:
            probe.start(batch)
            run(self.view, batch)
        return {key: value for key, value in probe.values.items() if key[0] in _PLACES}

    def _means(self, reference: Pairs, batch_size: int) -> dict[Key, Tensor]:
        sums: dict[Key, Tensor] = {}
        n = 0.0
        for _, other in reference.batches(batch_size, self.view.embedding.weight.device):
            assert other is not None
            mask = other.attention_mask[..., None]
            for key, value in self._values(other).items():
                total = (value * mask).sum((0, 1), keepdim=True)
                sums[key] = sums[key] + total if key in sums else total
            n += float(mask.sum())
        return {key: total / n for key, total in sums.items()}


@contextmanager
def zeroed(view: ModelView, kept: Kept) -> Iterator[None]:
    """Let a model run without all but some components, on whatever it is given.

    Args:
        view: The model; it is as before when the block ends.
        kept: What stays; all else is zero.

    Raises:
        ExciseError: A choice of edges, whose replacement depends on the prompt.
    """
    if kept.edges is not None:
        raise ExciseError(
            "edges are cut by their values on counterfactual prompts: run them by `Ablator`, or "
            "find a circuit of another level"
        )
    whole = nullcontext() if kept.weights is None else only_weights(view, kept.weights)
    with ExitStack() as undo, whole:
        for handle in _cut_nodes(view, {}, None, kept):
            undo.callback(handle.remove)
        yield


def _grad(gate: Tensor) -> Tensor:
    return torch.zeros_like(gate) if gate.grad is None else gate.grad.float().cpu()


def _cut_nodes(
    view: ModelView, values: Mapping[Key, Tensor], shape: torch.Size | None, kept: Kept
) -> Iterator[Any]:
    """Replace heads, neurons and MLPs where they write; yields the hooks' handles.

    Args:
        view: The model.
        values: As in `Prepared`.
        shape: Of the batch that `values` are for; None where they are all zero.
        kept: What stays.
    """

    def replaced(key: Key, x: Tensor, keep: Tensor) -> Tensor:
        value = values.get(key, x.new_zeros(()))
        # OPT's MLP sees the tokens of all rows in one
        shaped = x if shape is None else x.view(*shape, -1)
        if keep.dtype == torch.bool:
            mixed = torch.where(keep.to(x.device), shaped, value)
        else:
            mixed = value + keep * (shaped - value)
        return mixed.view_as(x)

    def before(key: Key, keep: Tensor, _linear: nn.Module, args: tuple[Any, ...]) -> Any:
        return (replaced(key, args[0], keep), *args[1:])

    def behind(key: Key, keep: Tensor, _linear: nn.Module, _args: Any, y: Tensor) -> Tensor:
        return replaced(key, y, keep)

    for index, layer in enumerate(view.layers):
        if _cuts(kept.heads, index):
            keep = kept.heads[index].repeat_interleave(view.head_dim)
            hook = partial(before, ("z", index), keep)
            yield layer.attention_out.register_forward_pre_hook(hook)
        if _cuts(kept.neurons, index):
            hook = partial(before, ("hidden", index), kept.neurons[index])
            yield layer.mlp_out.register_forward_pre_hook(hook)
        if _cuts(kept.mlps, index):
            hook = partial(behind, ("mlp", index), kept.mlps[index])
            yield layer.mlp_out.register_forward_hook(hook)


def _cuts(keep: Tensor | None, index: int) -> TypeGuard[Tensor]:
    """Say whether a layer has gates, or components that go."""
    return keep is not None and (keep.requires_grad or not bool(keep[index].all()))


def select_nodes(flat: Sequence[bool] | Tensor, n_layers: int, n_heads: int) -> Kept:
    """Read a flat choice of nodes, by layer heads and MLP, as what is kept."""
    grid = torch.as_tensor(flat, dtype=torch.bool).view(n_layers, n_heads + 1)
    return Kept(heads=grid[:, :-1], mlps=grid[:, -1])
