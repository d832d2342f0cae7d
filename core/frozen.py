"""Hold a model still: no dropout, no weight gradients, nothing changed afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .families import ModelView


@contextmanager
def frozen(view: ModelView) -> Iterator[None]:
    """Make a model deterministic and differentiable only in its activations, for a while.

    Parameters stop asking for gradients (a relevance pass needs activation gradients only, which
    saves the memory of a training step), the embedding's output starts to ask, and all modules go
    to evaluation mode. Where gradient checkpointing is switched on, which transformers honours in
    training mode only, the decoder layers alone keep the training flag, with their own dropout at
    zero: OPT calls functional dropout, and its LayerDrop looks at the decoder's flag.

    Everything is put back on the way out, also after an exception.

    Args:
        view: The model to hold.
    """
    model = view.model
    training = {module: module.training for module in model.modules()}
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dropouts: list[tuple[Any, str, float]] = []
    hook = view.embedding.register_forward_hook(_require_grad)
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(False)
        for layer in (layer.module for layer in view.layers):
            if layer.gradient_checkpointing:
                for name in view.family.dropouts:
                    dropouts.append((layer, name, getattr(layer, name)))
                    setattr(layer, name, 0.0)
                layer.training = True
        yield
    finally:
        hook.remove()
        for layer, name, probability in dropouts:
            setattr(layer, name, probability)
        for parameter in wanted:
            parameter.requires_grad_(True)
        for module, flag in training.items():
            module.training = flag


def _require_grad(_module: Any, _args: Any, output: Any) -> Any:
    return output if output.requires_grad or not _grad_on() else output.requires_grad_()


def _grad_on() -> bool:
    import torch

    return torch.is_grad_enabled()
