"""The scope: same logits inside, no trace outside, no silent loss of a rule."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from excise import ExciseError, LRPScope, Sample, collate
from excise.core.errors import RuleNotFiredError, UnsupportedModelError
from excise.lrp.attention import ACTIVE


KINDS = ("llama-gqa", "qwen3", "gemma3", "opt", "opt-350m")
Tiny = Callable[[str], Any]
IDS = torch.tensor([[5, 17, 3, 29, 11, 8, 17], [4, 9, 31, 2, 6, 6, 12]])


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """Return all weight gradients of a plain training step."""
    model.zero_grad()
    model(input_ids=IDS, use_cache=False).logits.square().sum().backward()
    found = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def trace(model: Any) -> dict[str, Any]:
    """Return everything about a model that a scope could leave behind."""
    return {
        "hooks": {
            path: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for path, m in model.named_modules()
        },
        "attributes": {path: sorted(vars(m)) for path, m in model.named_modules()},
        "training": {path: m.training for path, m in model.named_modules()},
        "requires_grad": {path: p.requires_grad for path, p in model.named_parameters()},
        "grads": [path for path, p in model.named_parameters() if p.grad is not None],
        "attention": model.config._attn_implementation,
        "dropout": [getattr(m, "dropout", None) for m in model.modules()],
        "active": len(ACTIVE),
    }


@pytest.mark.parametrize("variant", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_bit_identical(kind: str, epsilon: float, variant: Any, tiny: Tiny):
    model = tiny(kind)
    before = logits_of(model)
    with LRPScope(model, variant, epsilon):
        with_grad = model(input_ids=IDS, use_cache=False).logits
        assert torch.equal(with_grad, before)
        assert torch.equal(logits_of(model), before)
        with_grad[:, -1, 3].sum().backward()
    assert torch.equal(logits_of(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_no_trace(kind: str, tiny: Tiny):
    model = tiny(kind).train()
    model.config.dropout = 0.1
    before = trace(model)
    with LRPScope(model) as scope:
        model(input_ids=IDS, use_cache=False).logits[:, -1, 3].sum().backward()
        assert trace(model) != before
    assert trace(model) == before
    assert all(record.fired for record in scope.audit().rules)
    with pytest.raises(KeyError, match="inside"), LRPScope(model):
        raise KeyError("inside")
    assert trace(model) == before


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_gradients_outside_are_untouched(kind: str, tiny: Tiny):
    model, other = tiny(kind), tiny("opt" if kind != "opt" else "llama-gqa")
    same_config = type(model)(model.config).eval()  # transformers lets models share a config
    models = (model, other, same_config)
    before = [gradients(m) for m in models]
    with LRPScope(model):
        inside = [gradients(m) for m in (other, same_config)]
    after = [gradients(m) for m in models]
    for expected, found in zip(before + before[1:], after + inside, strict=True):
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[k], found[k]) for k in expected)


def relevance_of(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    model(inputs_embeds=embedded, use_cache=False, **inputs).logits[:, -1, 3].sum().backward()
    assert embedded.grad is not None
    return (embedded * embedded.grad).sum(-1).detach()


def test_the_innermost_scope_rules(tiny: Tiny):
    model = tiny("llama-gqa")
    with LRPScope(model):
        attnlrp = relevance_of(model)
    with LRPScope(model, "cp-lrp"):
        cp = relevance_of(model)
    assert not torch.allclose(attnlrp, cp)
    before = trace(model)
    with LRPScope(model) as outer:
        with LRPScope(model, "cp-lrp"):
            assert torch.equal(relevance_of(model), cp)
        assert torch.equal(relevance_of(model), attnlrp)
        with pytest.raises(RuntimeError, match="oh"), LRPScope(model, "cp-lrp"):
            raise RuntimeError("oh")
        assert torch.equal(relevance_of(model), attnlrp)
        with pytest.raises(ExciseError, match="open already"), outer:
            pass
        assert torch.equal(relevance_of(model), attnlrp)
    assert trace(model) == before


@pytest.mark.parametrize("kind", KINDS)
def test_sdpa_and_eager_agree(kind: str, tiny: Tiny):
    model = tiny(kind).double()
    found = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        with LRPScope(model):
            found[name] = relevance_of(model)
        assert model.config._attn_implementation == name
    scale = found["eager"].abs().max()
    assert (found["sdpa"] - found["eager"]).abs().max() / scale < 1e-6


@pytest.mark.parametrize("variant", ["attnlrp", "cp-lrp"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_fires_and_is_named(kind: str, variant: Any, tiny: Tiny):
    model = tiny(kind)
    with LRPScope(model, variant, epsilon=1e-6) as scope:
        relevance_of(model)
    audit = scope.audit()
    assert not audit.silent
    named = {(record.module, record.rule) for record in audit.rules}
    attention = "half per product" if variant == "attnlrp" else "constant pattern"
    for layer in scope.view.layers:
        assert (scope.view.path(layer.attention), attention) in named
    norms = {path for path, _ in scope.view.modules("rms_norm", "rms_norm_plus_one", "layer_norm")}
    skipped = {path for path in norms if path.endswith(("q_norm", "k_norm"))}
    expected = norms - skipped if variant == "cp-lrp" else norms
    assert {record.module for record in audit.rules if record.rule == "norm"} == expected
    assert len(audit.layers) == model.config.num_hidden_layers + 1
    assert "norm on" in str(audit)


def test_a_forward_pass_alone_is_no_error(tiny: Tiny):
    model = tiny("llama-gqa")
    for variant in ("attnlrp", "cp-lrp"):
        with LRPScope(model, variant) as scope:
            logits_of(model)
            model(input_ids=IDS, use_cache=False)
        assert scope.audit().layers == (0.0,) * 3
        assert {record.rule for record in scope.audit().silent} >= {"norm"}


def test_a_rule_that_never_fired_is_an_error(tiny: Tiny):
    model = tiny("llama-gqa")

    def explain_a_hidden_state() -> None:
        with LRPScope(model):
            hidden = model.model(input_ids=IDS, use_cache=False, output_hidden_states=True)
            hidden.hidden_states[1].sum().backward()

    with pytest.raises(RuleNotFiredError, match=r"norm in model\.norm"):
        explain_a_hidden_state()


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), float("inf")])
def test_bad_arguments(epsilon: float, tiny: Tiny):
    model = tiny("llama-gqa")
    with pytest.raises(ExciseError, match="epsilon"):
        LRPScope(model, epsilon=epsilon)
    with pytest.raises(ExciseError, match="unknown variant 'lrp'"):
        LRPScope(model, "lrp")  # type: ignore[arg-type]


def test_unknown_activation_is_refused_by_path(tiny: Tiny):
    model = tiny("llama-gqa")
    model.model.layers[1].mlp.act_fn = torch.nn.Mish()
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.mlp\.act_fn \(Mish\)"):
        LRPScope(model)


def test_unknown_attention_is_refused(tiny: Tiny):
    model = tiny("llama-gqa")
    model.config._attn_implementation = "flex_attention"
    before = trace(model)
    with pytest.raises(ExciseError, match="'flex_attention' has no relevance rule"):
        LRPScope(model).__enter__()
    assert trace(model) == before


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_conservation_without_biases(kind: str, tiny: Tiny):
    """CP attention and no biases: every layer passes on what it got, up to the first token."""
    model = tiny(kind).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    with LRPScope(model, "cp-lrp") as scope:
        value = model(input_ids=IDS, use_cache=False).logits[:, -1, 3].sum()
        value.backward()
    layers = torch.tensor(scope.audit().layers)
    scale = max(abs(value.item()), layers.abs().max().item())
    assert (layers - value.item()).abs().max() / scale < 1e-5


def test_padding_side_changes_nothing(tiny: Tiny):
    from excise import RelevanceFitter

    samples = [
        Sample((5, 17, 3, 29), answer=3),
        Sample((4, 9, 31, 2, 6, 6, 12), answer=3),
        Sample((8, 8, 1), answer=3),
    ]
    for kind in KINDS:
        model = tiny(kind).double()

        def run(batch: Any, model: Any = model) -> Any:
            fitter = RelevanceFitter(model, "logit", weights=["*"], aggregate="abs")
            fitter.update(batch)
            return fitter.result()

        alone = [run(collate([sample])) for sample in samples]
        for side in ("left", "right"):
            together = run(collate(samples, side))
            for row, single in enumerate(alone):
                for name in ("heads", "neurons"):
                    expected = single.samples[name][0]
                    error = (together.samples[name][row] - expected).abs().max()
                    assert error < 1e-6 * expected.abs().max(), (kind, side, name)
                n = len(samples[row].input_ids)
                assert torch.allclose(together.tokens[row, :n], single.tokens[0], rtol=1e-5)
            for name, weights in together.weights.items():
                expected = torch.stack([single.weights[name] for single in alone]).mean(0)
                assert (weights - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_checkpointing_changes_nothing(kind: str, tiny: Tiny):
    from excise.lrp.run import score_samples

    model = tiny(kind)
    if kind == "opt":  # functional dropout, alive in training mode
        model.config.dropout = 0.5
        for layer in model.model.decoder.layers:
            layer.dropout = 0.5
    samples = [Sample((5, 17, 3, 29, 9), answer=3)]
    plain = score_samples(model, samples, "logit", weights=["*"])
    checkpointed = copy.deepcopy(model)
    for module in checkpointed.modules():
        if type(module).__name__.endswith("DecoderLayer"):
            module.gradient_checkpointing = True  # as gradient_checkpointing_enable sets it
            module._gradient_checkpointing_func = _checkpoint
    found = score_samples(checkpointed, samples, "logit", weights=["*"])
    assert torch.equal(plain.get("neurons"), found.get("neurons"))
    assert all(torch.equal(plain.weights[k], found.weights[k]) for k in plain.weights)


def _checkpoint(function: Any, *args: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)
