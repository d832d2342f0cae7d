"""Hold a model still: no dropout, no weight gradients, nothing changed afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from .families import ModelView
from .held import held


class _Stillness:
    """What one or more blocks changed about a model, and how it was before the first."""

    def __init__(self, view: ModelView):
        self.depth = 0
        self._before: dict[tuple[int, str], tuple[Any, Any]] = {}
        self._hook = view.embedding.register_forward_hook(_require_grad)

    def hold(self, view: ModelView) -> None:
        from torch.utils.checkpoint import checkpoint

        for module in view.model.modules():
            self._set(module, "training", False)
        for parameter in view.model.parameters():
            self._set(parameter, "requires_grad", False)
        for layer in (layer.module for layer in view.layers):
            if layer.gradient_checkpointing:
                for name in view.family.dropouts:
                    self._set(layer, name, 0.0)
                again = partial(checkpoint, use_reentrant=False)
                self._set(layer, "_gradient_checkpointing_func", again)
                layer.training = True

    def release(self) -> None:
        self._hook.remove()
        for (_, name), (owner, value) in self._before.items():
            setattr(owner, name, value)

    def _set(self, owner: Any, name: str, value: Any) -> None:
        self._before.setdefault((id(owner), name), (owner, getattr(owner, name)))
        setattr(owner, name, value)


_STILL: "WeakKeyDictionary[Any, _Stillness]" = WeakKeyDictionary()
"""The models that are held still now."""


@contextmanager
def frozen(view: ModelView) -> Iterator[None]:
    """Make a model deterministic and differentiable only in its activations, for a while.

    Parameters stop asking for gradients (a relevance pass needs activation gradients only, which
    saves the memory of a training step), the embedding's output starts to ask, and all modules go
    to evaluation mode. Where gradient checkpointing is switched on, which transformers honours in
    training mode only, the decoder layers alone keep the training flag, with their own dropout at
    zero: OPT calls functional dropout, and its LayerDrop looks at the decoder's flag. They are
    checkpointed without torch's reentrant engine meanwhile, which runs the hooks of a first pass
    without gradients, and so gives other scores where activations are replaced.

    Blocks may overlap and end in any order: when the last one has ended, also by an exception,
    everything is as it was before the first.

    Args:
        view: The model to hold.

    Raises:
        ExciseError: Another thread holds it.
    """
    model = view.model
    with held(model):
        still = _STILL.get(model)
        if still is None:
            still = _STILL[model] = _Stillness(view)
        still.depth += 1
        try:
            still.hold(view)
            yield
        finally:
            still.depth -= 1
            if not still.depth:
                del _STILL[model]
                still.release()


def _require_grad(_module: Any, _args: Any, output: Any) -> Any:
    return output if output.requires_grad or not _grad_on() else output.requires_grad_()


def _grad_on() -> bool:
    import torch

    return torch.is_grad_enabled()
