"""Tuning brings the dense model's predictions back, and leaves no trace of how."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from excise.core.data import Sample, collate
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.prune.recipe import Recipe
from excise.prune.run import prune_weights
from excise.prune.tune import predictions, tune


def prompts(n: int = 6) -> list[Sample]:
    draw = torch.Generator().manual_seed(3)
    lengths = [12 + i % 3 for i in range(n)]
    return [Sample(tuple(torch.randint(3, 160, (k,), generator=draw).tolist())) for k in lengths]


def divergence(model: Any, dense: Any, samples: list[Sample]) -> float:
    """Return the mean over tokens of sum p log(p / q), sample by sample."""
    total, count = 0.0, 0
    for sample in samples:
        ids = torch.tensor([sample.input_ids])
        with torch.no_grad():
            p, q = (m(ids).logits[0].double().softmax(-1) for m in (dense, model))
        total += (p * (p / q).log()).sum().item()
        count += len(sample.input_ids)
    return total / count


@pytest.mark.parametrize("kind", ["llama-gqa", "llama-bias", "opt", "opt-350m", "gemma3", "qwen3"])
def test_predictions_come_nearer(kind: str, tiny: Callable[..., Any]):
    dense, model = tiny(kind), tiny(kind)
    samples, batch = prompts(), [collate(prompts(4)), collate(prompts()[4:], "left")]
    view = ModelView.of(model)
    targets = predictions(view, batch)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert tune(view, batch, targets, 0) == []
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    prune_weights(model, samples, Recipe())
    wanted = [p.requires_grad for p in model.parameters()]
    zeros = {name: p == 0 for name, p in model.named_parameters()}
    start = divergence(model, dense, samples)
    losses = tune(view, batch, targets, 8, rate=0.02)
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert divergence(model, dense, samples) < 0.97 * start
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert torch.equal(parameter == 0, zeros[name]), name
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any(m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model.get_input_embeddings().weight, before_embedding(before))


def before_embedding(before: dict[str, Any]) -> Any:
    return next(tensor for name, tensor in before.items() if "embed_tokens" in name)


@pytest.mark.parametrize("kind", ["llama-bias", "opt", "gemma3"])
def test_folding_changes_nothing(kind: str, tiny: Callable[..., Any]):
    """What the model gave under its last scales it gives without them."""
    from excise.prune.tune import _scaled

    model = tiny(kind).double()
    view, ids = ModelView.of(model), torch.tensor([prompts()[0].input_ids])
    with torch.no_grad():
        with _scaled(view) as outputs:
            for at, tensor in enumerate(t for output in outputs for t in output.parameters):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=_draw(at)))
            scaled = model(ids).logits
        for output in outputs:
            output.fold()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, scaled, rtol=1e-6, atol=1e-6)


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_first_loss_is_the_divergence_of_the_pruned_model(tiny: Callable[..., Any]):
    dense, model = tiny("opt").double(), tiny("opt").double()
    samples = prompts(1)
    pruned = prune_weights(model, samples, Recipe(tune=1))
    untuned = tiny("opt").double()
    prune_weights(untuned, samples, Recipe())
    assert pruned.divergences[0] == pytest.approx(divergence(untuned, dense, samples), rel=1e-5)


def test_half_precision_with_biases(tiny: Callable[..., Any]):
    """Public OPT checkpoints are float16, where Adam's own numbers would not fit."""
    model = tiny("opt").half()
    pruned = prune_weights(model, prompts(2), Recipe(tune=2))
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert pruned.divergences[1] < pruned.divergences[0]


def test_a_tuning_that_fails_leaves_the_model(tiny: Callable[..., Any]):
    model, batch = tiny("opt"), [collate(prompts(2))]
    view = ModelView.of(model)
    targets = [torch.full_like(t, torch.nan) for t in predictions(view, batch)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ExciseError, match="--tune 0"):
        tune(view, batch, targets, 1)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.skipif(transformers.__version__ < "5", reason="4.x cannot make such a model itself")
def test_norms_without_weights(kinds: Any):
    arguments = {**kinds["opt"][1], "layer_norm_elementwise_affine": False}
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**arguments)).eval()
    assert len(prune_weights(model, prompts(2), Recipe(tune=1)).divergences) == 1
