"""A model that was held still is afterwards as it was before."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from excise.core.families import ModelView
from excise.core.frozen import frozen


IDS = torch.tensor([[1, 5, 9, 17, 3]])


def state(model: Any) -> dict[str, Any]:
    """Describe what `frozen` touches."""
    return {
        "training": {path: module.training for path, module in model.named_modules()},
        "grad": {path: p.requires_grad for path, p in model.named_parameters()},
        "dropout": {path: getattr(m, "dropout", None) for path, m in model.named_modules()},
        "hooks": {path: len(m._forward_hooks) for path, m in model.named_modules()},
        "checkpointing": [
            layer.module.gradient_checkpointing for layer in ModelView.of(model).layers
        ],
    }


def checkpoint(model: Any) -> None:
    """Switch gradient checkpointing on, under its new or its old name."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)()


def disturb(model: Any) -> None:
    """Put a model in a state that no default would restore."""
    model.train()
    model.get_submodule(ModelView.of(model).layers[0].path).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_trace_is_left(
    tiny: Callable[[str], Any], kind: str, checkpointing: bool, error: type[BaseException] | None
):
    model = tiny(kind)
    if checkpointing:
        checkpoint(model)
    disturb(model)
    before = state(model)
    with suppress(RuntimeError, KeyboardInterrupt), frozen(ModelView.of(model)):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert state(model) != before
        if error:
            raise error
    assert state(model) == before


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_model_becomes_deterministic(
    tiny: Callable[[str], Any], kind: str, checkpointing: bool
):
    model = tiny(kind)
    expected = model(IDS, use_cache=False).logits
    model.train()
    if checkpointing:
        checkpoint(model)
    if kind == "opt":  # dropout is on, so this comparison can fail
        assert not torch.allclose(model(IDS, use_cache=False).logits, expected)
        model.config.layerdrop = model.model.decoder.layerdrop = 0.9
    with frozen(ModelView.of(model)):
        logits = model(IDS, use_cache=False).logits
        torch.testing.assert_close(logits, expected)
        logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_activations_can_be_explained(tiny_llama: Any):
    with frozen(ModelView.of(tiny_llama)):
        assert tiny_llama(IDS).logits.requires_grad
        with torch.no_grad():
            assert not tiny_llama(IDS).logits.requires_grad
