"""See what flows through a model: activations where components write, gradients where they read.

A probe sits in hooks of one model's modules and hands tensors on unchanged, so the logits are those
of the model to the last bit. Everything is (batch, seq, width), for OPT too, whose MLP sees tokens
in one row.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.data import Batch
from ..core.families import ModelView
from ..lrp.recorder import Tap


Key = tuple[str, int]
"""A place and a layer. Places: `embed` (start of the residual stream), `z` (input of the
attention's output linear: all heads side by side), `hidden` (MLP units), `mlp` (the MLP's output);
read by `q`, `k`, `v` (outputs of these linears), `read` (the residual stream as the MLP's branch
sees it), `end` (the residual stream behind the last layer); `attention_norm`, `mlp_norm`,
`attention_out_norm`, `mlp_out_norm` (inputs of norms)."""


class Probe:
    """Record one pass at a time.

    Args:
        view: The model.
        edges: Whether readers and norms are looked at, too.
    """

    def __init__(self, view: ModelView, edges: bool = False):
        self.view, self.edges = view, edges
        self.values: dict[Key, Tensor] = {}
        """What was there in the last pass."""
        self.grads: dict[Key, Tensor] = {}
        """Gradients there in the last backward pass."""
        self.replaced: dict[Key, Tensor] = {}
        """What is put in the place of activations, for integrated gradients."""
        self._shape = (0, 0)
        self._undo = ExitStack()

    def start(self, batch: Batch) -> None:
        """Begin a batch: forget the one before."""
        self.values, self.grads = {}, {}
        self._shape = (len(batch), batch.input_ids.shape[1])

    def __enter__(self) -> "Probe":
        with ExitStack() as undo:
            for handle in self._hooks():
                undo.callback(handle.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def _hooks(self) -> Iterator[Any]:
        view = self.view
        yield self._before(view.layers[0].module, ("embed", 0))
        for index, layer in enumerate(view.layers):
            yield self._before(layer.attention_out, ("z", index))
            yield self._before(layer.mlp_out, ("hidden", index))
            yield self._behind(layer.mlp_out, ("mlp", index))
            if not self.edges:
                continue
            yield self._before(layer.attention_norm, ("attention_norm", index), tap=False)
            yield self._before(layer.mlp_norm, ("mlp_norm", index), tap=False)
            # behind the hook above, so that the norm's own input is tapped, and nothing else
            branch = layer.mlp_norm if view.norm_first else layer.mlp_in[0]
            yield self._before(branch, ("read", index))
            linears = (*layer.query_key[:2], layer.value)
            for place, linear in zip("qkv", linears, strict=True):
                yield self._behind(linear, (place, index))
            for place, norm in (("attention_out_norm", layer.attention_out_norm),
                                ("mlp_out_norm", layer.mlp_out_norm)):  # fmt: skip
                if norm is not None:
                    yield self._before(norm, (place, index), tap=False)
        if self.edges:
            yield self._behind(view.layers[-1].module, ("end", 0))

    def _before(self, module: nn.Module, key: Key, tap: bool = True) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            seen = self._seen(key, args[0], tap)
            return None if seen is None else (seen, *args[1:])

        return module.register_forward_pre_hook(hook)

    def _behind(self, module: nn.Module, key: Key) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return self._seen(key, output, True)
            seen = self._seen(key, output[0], True)  # layers of transformers 4
            return None if seen is None else (seen, *output[1:])

        return module.register_forward_hook(hook)

    def _seen(self, key: Key, x: Tensor, tap: bool) -> Tensor | None:
        if key in self.replaced:
            x = self.replaced[key].detach().view_as(x).requires_grad_()
        self.values[key] = x.detach().view(*self._shape, -1)
        if not (tap and torch.is_grad_enabled() and x.requires_grad):
            return None

        def sink(_x: Tensor, grad: Tensor) -> None:
            self.grads[key] = grad.detach().view(*self._shape, -1)

        return Tap.apply(x, sink)


@contextmanager
def last_logits(view: ModelView, batch: Batch) -> Iterator[None]:
    """Let the language-model head see each row's last token alone: nobody reads the others."""
    rows = torch.arange(len(batch), device=batch.input_ids.device)

    def hook(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][rows, batch.last][:, None], *args[1:])

    handle = view.model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run(view: ModelView, batch: Batch) -> Tensor:
    """Return the logits behind each row's last token, (batch, 1, vocab)."""
    with last_logits(view, batch):
        return view.model(**batch.model_inputs(view.family.passes_position_ids)).logits
