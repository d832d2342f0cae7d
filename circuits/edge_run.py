"""A forward pass in which edges are cut: every reader gets its own residual stream."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from ..core.families import ModelView
from .graph import Graph
from .probe import Key
from .writers import attention_readers, head_outputs, readable_weights


class EdgeRun:
    """Hooks for one pass of one batch.

    A reader's stream is put together anew: of each writer what it really wrote in this pass, if
    their edge is kept, else its replacement. Each stream passes the reader's norm by itself, and
    what a branch writes into it the norm that the branch may end with.

    Args:
        view: The model.
        values: What replaces writers, by place and layer; a writer that is not there is replaced
            by zero.
        shape: Batch and tokens.
        kept: (writers, readers), booleans or gates between 0 and 1 that may ask for gradients.
    """

    def __init__(
        self, view: ModelView, values: Mapping[Key, Tensor], shape: tuple[int, ...], kept: Tensor
    ):
        readable_weights(view)
        self.view, self.graph, self.values = view, Graph.of(view), values
        self.kept = kept.to(view.embedding.weight)
        self.shape = (*shape, view.d_model)
        self.changes = self.kept.new_empty(len(self.graph.writers), *self.shape)
        """What each writer wrote less its replacement; filled as the pass goes on."""
        self._parts: dict[int, Tensor] = {}
        """The same with their gradients, by addition to the stream: embedding, attention of layer
        0, MLP of layer 0, ... A checkpointed layer comes by twice, and writes the same again."""
        self._base: dict[int, Tensor] = {}
        """What replacements and biases add, by addition."""
        self._streams = self.kept.new_zeros(())

    def hooks(self) -> Iterator[Any]:
        """Put the hooks on and yield their handles."""
        view = self.view
        readers = self.graph.reader_index
        yield view.layers[0].module.register_forward_pre_hook(self._embed)
        for index, layer in enumerate(view.layers):
            first = readers["q", index, 0]
            for _, linear, units in attention_readers(view, layer):
                at = slice(first, first + units)
                yield linear.register_forward_hook(partial(self._attention, index, at))
                first = at.stop
            yield layer.attention_out.register_forward_pre_hook(partial(self._heads, index))
            branch = layer.mlp_norm if view.norm_first else layer.mlp_in[0]
            yield branch.register_forward_pre_hook(partial(self._mlp_input, index, first))
            yield layer.mlp_out.register_forward_hook(partial(self._mlp, index))
        yield view.layers[-1].module.register_forward_hook(self._end)

    def _embed(self, _layer: nn.Module, args: tuple[Any, ...]) -> None:
        value = self.values.get(("embed", 0))
        self._add(0, args[0][None], None if value is None else value[None])

    def _attention(
        self, index: int, units: slice, linear: Any, _args: Any, _output: Tensor
    ) -> Float[Tensor, "b t out"]:
        """Return the output of a linear whose heads or groups read different streams."""
        start = self.graph.reader_index["q", index, 0]
        if units.start == start:  # queries come first: read once for keys and values, too
            end = self.graph.reader_index["mlp", index]
            streams = self._read(slice(start, end), 2 * index)
            norm = self.view.layers[index].attention_norm
            self._streams = norm(streams) if self.view.norm_first else streams
        streams = self._streams[units.start - start : units.stop - start]  # (U, B, T, d)
        weight = linear.weight.unflatten(0, (len(streams), -1))
        out = torch.einsum("ubtd,ued->btue", streams, weight).flatten(2)
        return out if linear.bias is None else out + linear.bias

    def _heads(self, index: int, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        layer = self.view.layers[index]
        replaced = None
        if (value := self.values.get(("z", index))) is not None:
            replaced = head_outputs(self.view, layer, value).transpose(0, 1)  # (H, B, T, d)
        parts = head_outputs(self.view, layer, args[0]).transpose(0, 1)
        self._add(2 * index + 1, parts, replaced, layer.attention_out.bias)

    def _mlp_input(
        self, index: int, reader: int, _branch: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        stream = self._read(slice(reader, reader + 1), 2 * index + 1)[0]
        return (stream.view_as(args[0]), *args[1:])

    def _mlp(self, index: int, _linear: nn.Module, _args: Any, output: Tensor) -> None:
        value = self.values.get(("mlp", index))
        output = output.view(self.shape)
        self._add(2 * index + 2, output[None], None if value is None else value[None])

    def _end(self, _layer: nn.Module, _args: Any, output: Any) -> Any:
        last = len(self.graph.readers) - 1
        stream = self._read(slice(last, last + 1), 2 * len(self.view.layers))[0]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    def _add(
        self,
        addition: int,
        parts: Float[Tensor, "n b t d"],
        replaced: Tensor | None,
        constant: Tensor | None = None,
    ) -> None:
        """Note what writers wrote, what replaces it, and a bias that belongs to none of them."""
        base = parts.new_zeros(()) if constant is None else constant
        if replaced is not None:
            parts = parts - replaced
            base = base + replaced.sum(0)
        written = sum(len(self._parts[before]) for before in range(addition))
        self.changes[written : written + len(parts)] = parts.detach()
        self._parts[addition], self._base[addition] = parts, base

    def _read(self, readers: slice, additions: int) -> Float[Tensor, "readers b t d"]:
        """Put together what readers see after the embedding and a number of additions."""
        added = range(additions + 1)
        parts, base = ([of[addition] for addition in added] for of in (self._parts, self._base))
        visible = sum(map(len, parts))
        keep = self.kept[:visible, readers]
        first = self.view.layers[0]
        if self.view.norm_first and not (first.attention_out_norm or first.mlp_out_norm):
            mixed = _Mix.apply(keep, self.changes[:visible], *parts)
            return mixed + sum(base, start=keep.new_zeros(()))
        stream, at = keep.new_zeros(()), 0
        for addition, part in enumerate(parts):  # norms come behind: each stream has its own
            rows = slice(at, at + len(part))
            mixed = _Mix.apply(keep[rows], self.changes[rows], part) + base[addition]
            at = rows.stop
            if not addition:
                stream = stream + mixed
                continue
            layer, attention = self.view.layers[(addition - 1) // 2], addition % 2
            own = layer.attention_out_norm if attention else layer.mlp_out_norm
            stream = stream + (mixed if own is None else own(mixed))
            if not self.view.norm_first:
                stream = (layer.attention_norm if attention else layer.mlp_norm)(stream)
        return stream


class _Mix(Function):
    """Add up what writers wrote, each times its gate for each reader.

    `written` is what `parts` hold, side by side, and is not copied; gradients go to the parts.
    """

    @staticmethod
    def forward(ctx: Any, keep: Tensor, written: Tensor, *parts: Tensor):
        # kept by hand: later writers fill other rows of the same memory, which autograd would
        # take for a change
        ctx.keep, ctx.written = keep.detach(), written
        ctx.sizes = [len(part) for part in parts]
        return (keep.T @ written.flatten(1)).view(-1, *written.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):
        grad = grads[0].flatten(1)  # (readers, B T d)
        of_keep = ctx.written.flatten(1) @ grad.T
        of_written = (ctx.keep @ grad).view(-1, *grads[0].shape[1:])
        return of_keep, None, *of_written.split(ctx.sizes)
