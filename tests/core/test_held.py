"""Scopes, masks and edits that overlap: nothing is left, whatever the order; no second thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import permutations
from typing import Any

import pytest
import torch
from excise import ExciseError, LRPScope
from excise.circuits.weights import only_weights
from excise.core.families import ModelView
from excise.core.frozen import frozen
from excise.edits.edit import Edit
from excise.lrp.attention import ACTIVE
from excise.lrp.difference import DifferenceScope
from excise.prune.mask import Mask


IDS = torch.tensor([[5, 17, 3, 29, 11]])


def half_of_weights(model: Any) -> AbstractContextManager[None]:
    """Have every other weight at zero."""
    view = ModelView.of(model)
    n = sum(linear.weight.numel() for linear in view.layer_linears().values())
    return only_weights(view, torch.arange(n) % 2 == 0)


KEEP = torch.tensor([[True, False, True, True], [False, True, True, True]])
BLOCKS: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "scope": LRPScope,
    "constant": lambda model: LRPScope(model, "cp-lrp"),
    "difference": DifferenceScope,
    "frozen": lambda model: frozen(ModelView.of(model)),
    "mask": lambda model: Mask("heads", {"heads": KEEP}).applied(model),
    "edit": lambda model: Edit(heads={(0, 1): 3.0, (0, 2): 0.3, (1, 1): -1.0}).applied(model),
    "weights": half_of_weights,
}


def trace(model: Any) -> dict[str, Any]:
    """Return everything that one of the blocks could leave behind."""
    return {
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "attention": model.config._attn_implementation,
        "dropout": [getattr(m, "dropout", None) for m in model.modules()],
        "checkpoint": [vars(m).get("_gradient_checkpointing_func") for m in model.modules()],
        "active": len(ACTIVE),
        "weights": {k: p.tolist() for k, p in model.named_parameters()},
    }


def overlap(model: Any, names: tuple[str, ...], order: tuple[int, ...]) -> Iterator[int]:
    """Enter blocks by name, leave them in an order, and yield after each."""
    blocks = [BLOCKS[name](model) for name in names]
    for block in blocks:
        block.__enter__()
    yield -1
    for at in order:
        blocks[at].__exit__(None, None, None)
        yield at


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize(
    "names",
    [
        ("scope", "constant", "scope"),
        ("frozen", "scope", "difference"),
        ("scope", "frozen", "frozen"),
        ("mask", "edit", "mask"),
        ("edit", "weights", "edit"),
        ("mask", "scope", "edit"),
    ],
)
def test_blocks_left_in_any_order_leave_nothing(
    names: tuple[str, ...], order: tuple[int, ...], tiny: Callable[[str], Any]
):
    for kind in ("llama-gqa", "opt"):
        model = tiny(kind).train()
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)()
        list(model.parameters())[3].requires_grad_(False)
        before = trace(model)
        list(overlap(model, names, order))
        assert trace(model) == before


def test_a_scope_left_early_leaves_the_other_rules_on(tiny_llama: Any):
    def relevance() -> torch.Tensor:
        embedded = tiny_llama.get_input_embeddings()(IDS).detach().requires_grad_()
        tiny_llama(inputs_embeds=embedded, use_cache=False).logits[0, -1, 3].backward()
        assert embedded.grad is not None
        return embedded.grad

    with LRPScope(tiny_llama):
        expected = relevance()
    first, second = LRPScope(tiny_llama, "cp-lrp"), LRPScope(tiny_llama)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(relevance(), expected)
    second.__exit__(None, None, None)


def test_a_change_left_early_leaves_the_other_as_if_alone(tiny_llama: Any):
    weights = lambda: {k: p.clone() for k, p in tiny_llama.named_parameters()}  # noqa: E731
    for names in (("mask", "edit"), ("edit", "mask"), ("edit", "edit"), ("weights", "edit")):
        with BLOCKS[names[1]](tiny_llama):
            expected = weights()
        steps = overlap(tiny_llama, names, (0, 1))
        next(steps)
        assert next(steps) == 0
        found = weights()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
        list(steps)


def test_models_of_one_config_leave_it_as_it_was(tiny_llama: Any):
    other = type(tiny_llama)(tiny_llama.config).eval()
    first, second = LRPScope(tiny_llama), LRPScope(other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    other(input_ids=IDS, use_cache=False).logits[0, -1, 3].backward()
    assert not second.audit().silent
    second.__exit__(None, None, None)
    assert tiny_llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("mine", BLOCKS)
def test_a_second_thread_is_refused(mine: str, tiny_llama: Any):
    def enter(name: str) -> None:
        with BLOCKS[name](tiny_llama):
            pass

    with ThreadPoolExecutor(1) as pool:
        with BLOCKS[mine](tiny_llama):
            inside = trace(tiny_llama)
            for name in BLOCKS:
                with pytest.raises(ExciseError, match="thread 'MainThread' has this model"):
                    pool.submit(enter, name).result()
            assert trace(tiny_llama) == inside
        for name in BLOCKS:
            pool.submit(enter, name).result()
