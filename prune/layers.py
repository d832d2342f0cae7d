"""Decoder layers one at a time: what each reads, without running the ones behind it.

The model's own forward pass prepares positions and masks, so no family's code is repeated here: for
the length of one call every decoder layer only notes what it is given. After that each layer runs
alone, on the output of the (already pruned) layer before it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.data import Batch
from ..core.families import LayerView, ModelView


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer behind its hidden states."""


@dataclass
class Flow:
    """Where calibration stands: the hidden states that the next layer reads, batch by batch."""

    batches: Sequence[Batch]
    hidden: list[Tensor]
    """(batch, seq, d_model) of each batch, on the CPU."""
    calls: list[list[Call]]
    """What each batch (outer) gives each layer (inner) besides its hidden states."""

    @classmethod
    def begin(cls, view: ModelView, batches: Sequence[Batch]) -> "Flow":
        """Embed the batches: the hidden states that the first layer reads."""
        hidden, calls = [], []
        for batch in batches:
            batch = batch.to(view.embedding.weight.device)
            first, given = _noted(view, batch)
            hidden.append(first.cpu())
            calls.append(given)
        return cls(batches, hidden, calls)

    def through(self, index: int, layer: LayerView, device: Any) -> Iterator[Tensor]:
        """Run every batch through one layer; yields its outputs in order, on the CPU."""
        for hidden, calls in zip(self.hidden, self.calls, strict=True):
            arguments, named = calls[index]
            with torch.no_grad():
                output = layer.module(
                    hidden.to(device), *_moved(arguments, device), **_moved(named, device)
                )
            yield (output[0] if isinstance(output, tuple) else output).cpu()

    def advance(self, index: int, layer: LayerView, device: Any) -> None:
        """Replace the hidden states by the layer's outputs, one batch at a time."""
        for at, output in enumerate(self.through(index, layer, device)):
            self.hidden[at] = output


@contextmanager
def observed(
    linears: Sequence[nn.Module], see: Callable[[nn.Module, Tensor], None]
) -> Iterator[None]:
    """Show the input of linears to a function while they run."""
    with ExitStack() as undo:
        for linear in linears:
            handle = linear.register_forward_pre_hook(lambda module, given: see(module, given[0]))
            undo.callback(handle.remove)
        yield


def _noted(view: ModelView, batch: Batch) -> tuple[Tensor, list[Call]]:
    """Return the first layer's hidden states, and what every layer is given besides them."""
    hidden: list[Tensor] = []
    calls: list[Call] = []

    def note(own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(states: Tensor, *arguments: Any, **named: Any) -> Any:
            hidden.append(states)
            calls.append((arguments, named))
            if len(calls) == 1:  # some families' layers return a tuple: see what this one does
                returns_tuple.append(isinstance(own(states, *arguments, **named), tuple))
            return (states,) if returns_tuple[0] else states

        return forward

    returns_tuple: list[bool] = []
    with ExitStack() as undo, torch.no_grad():
        for layer in view.layers:
            undo.callback(_put_back, layer.module, vars(layer.module).get("forward"))
            layer.module.forward = note(layer.module.forward)  # this instance only
        body = view.model.get_submodule(view.family.body)
        body(**batch.model_inputs(view.family.passes_position_ids))
    return hidden[0], calls


def _put_back(module: nn.Module, own: Any) -> None:
    """Give an instance its own `forward` back, or none if it had none."""
    if own is None:
        del module.forward
    else:
        module.forward = own


def _moved(value: Any, device: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(inner, device) for inner in value)
    return value
