"""Scores: aggregates and baselines against their definitions, and sums that must hold."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from excise import ExciseError, RelevanceFitter, Sample, collate
from excise.core.data import fingerprint
from excise.core.families import ModelView
from excise.core.frozen import frozen
from excise.lrp.methods import METHODS
from excise.lrp.run import score_samples
from excise.lrp.targets import TARGETS, Token


Tiny = Callable[[str], Any]
REDUCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "signed": lambda r: r.sum(0),
    "abs": lambda r: r.sum(0).abs(),
    "square": lambda r: r.square().sum(0),
}
SAMPLES = [
    Sample((5, 17, 3, 29, 9, 2), answer=3, wrong=8, continuation=2),
    Sample((4, 9, 31, 2), answer=11, wrong=3, continuation=1),
    Sample((7, 7, 12, 30, 1), answer=4, wrong=5, continuation=2),
]


@pytest.mark.parametrize("method", ["lrp", "cp-lrp", "gradient-x-activation"])
@pytest.mark.parametrize("kind", ["llama-gqa", "llama-bias", "opt", "opt-350m"])
def test_outgoing_weights_sum_to_their_neuron_and_head(kind: str, method: str, tiny: Tiny):
    model = tiny(kind).double()
    relevance = score_samples(model, SAMPLES, "logit", method, weights=["*"])
    view = ModelView.of(model)
    for index, layer in enumerate(view.layers):
        mlp = relevance.weights[f"{view.path(layer.mlp_out)}.weight"].sum(0)
        torch.testing.assert_close(
            mlp.float(), relevance.get("neurons")[index], rtol=1e-5, atol=1e-7
        )
        out = relevance.weights[f"{view.path(layer.attention_out)}.weight"].sum(0)
        heads = out.unflatten(0, (view.n_heads, -1)).sum(1).float()
        torch.testing.assert_close(heads, relevance.get("heads")[index], rtol=1e-5, atol=1e-7)
    groups = relevance.get("heads").unflatten(1, (view.n_kv_heads, -1)).sum(-1)
    assert torch.equal(relevance.get("kv_groups"), groups)


def pieces(model: Any, sample: Sample) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return (input, output gradient) of every linear of the layers, plain autograd, one sample."""
    view, found = ModelView.of(model), {}

    def hook(path: str) -> Any:
        def keep(_m: Any, args: Any, y: torch.Tensor) -> None:
            y.retain_grad()
            found[path] = (args[0], y)

        return keep

    handles = [m.register_forward_hook(hook(path)) for path, m in view.layer_linears().items()]
    with frozen(view):
        logits = model(input_ids=torch.tensor([sample.input_ids]), use_cache=False).logits
        logits[0, -1, sample.answer].backward()
    for handle in handles:
        handle.remove()
    return {p: (x.detach().flatten(0, -2), y.grad.flatten(0, -2)) for p, (x, y) in found.items()}


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
@pytest.mark.parametrize("aggregate", ["signed", "abs", "square"])
def test_aggregates_by_their_definition(kind: str, aggregate: Any, tiny: Tiny):
    """From per-token weight gradients, written out; the fitter never forms those."""
    model = tiny(kind).double()
    weights, neurons = {}, []
    for sample in SAMPLES:
        found = pieces(model, sample)
        for path, (x, g) in found.items():
            w = model.get_submodule(path).weight.detach()
            per_token = g[:, :, None] * x[:, None, :] * w  # (T, out, in)
            weights[path] = weights.get(path, 0) + REDUCE[aggregate](per_token) / len(SAMPLES)
        rows = []
        for layer in ModelView.of(model).layers:
            x, g = found[ModelView.of(model).path(layer.mlp_out)]
            r = x * (g @ layer.mlp_out.weight.detach())  # (T, F)
            rows.append(
                {"signed": r.sum(0), "abs": r.sum(0).abs(), "square": (r * r).sum(0)}[aggregate]
            )
        neurons.append(torch.stack(rows))
    relevance = score_samples(
        model, SAMPLES, "logit", "gradient-x-activation", weights=["*"], aggregate=aggregate
    )
    for path, expected in weights.items():
        found = relevance.weights[f"{path}.weight"].double()
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max(), path
    expected = torch.stack(neurons)
    torch.testing.assert_close(
        relevance.samples["neurons"].double(),
        expected,
        rtol=1e-5,
        atol=1e-6 * expected.abs().max().item(),
    )


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_activation_norm_is_wandas(kind: str, tiny: Tiny):
    model = tiny(kind).double()
    relevance = score_samples(
        model, SAMPLES, "logit", "activation-norm", weights=["*"], components=()
    )
    sums: dict[str, Any] = {}
    for sample in SAMPLES:
        for path, (x, _) in pieces(model, sample).items():
            sums[path] = sums.get(path, 0) + x.square().sum(0)
    for path, total in sums.items():
        weight = model.get_submodule(path).weight.detach().abs()
        expected = weight * (total / len(SAMPLES)).sqrt()
        torch.testing.assert_close(relevance.weights[f"{path}.weight"], expected, rtol=1e-6, atol=0)


def test_gradient_is_the_size_of_the_weight_gradient(tiny: Tiny):
    model = tiny("llama-gqa").double()
    relevance = score_samples(model, SAMPLES[:1], "logit", "gradient", weights=["*down_proj"])
    for path, (x, g) in pieces(model, SAMPLES[0]).items():
        if path.endswith("down_proj"):
            found = relevance.weights[f"{path}.weight"]
            torch.testing.assert_close(found, (g.T @ x).abs(), rtol=1e-6, atol=1e-12)


def test_integrated_gradients_are_complete(tiny: Tiny):
    """Token scores sum to f(x) - f(zeroed token embeddings), as the number of steps grows."""
    for kind in ("llama-gqa", "opt"):
        model = tiny(kind).double()
        for norm in model.modules():
            if type(norm).__name__ == "LlamaRMSNorm":
                norm.variance_epsilon = 0.5  # else the path is all but a jump at its start
        sample = SAMPLES[0]
        relevance = score_samples(
            model, [sample], "logit", "integrated-gradients", steps=300, components=["tokens"]
        )
        ids = torch.tensor([sample.input_ids])
        embedded = model.get_input_embeddings()(ids)
        with torch.no_grad():
            whole, empty = (
                model(inputs_embeds=embedded * a).logits[0, -1, sample.answer] for a in (1, 1e-9)
            )
        assert relevance.tokens is not None
        total = relevance.tokens.sum().item()
        assert total == pytest.approx((whole - empty).item(), rel=2e-2, abs=1e-4)


def test_random_is_seeded(tiny: Tiny):
    model = tiny("llama-gqa")
    one, same, other = (
        score_samples(model, SAMPLES, method="random", seed=s, weights=["*q_proj"])
        for s in (1, 1, 2)
    )
    assert torch.equal(one.get("heads"), same.get("heads"))
    assert not torch.equal(one.get("heads"), other.get("heads"))
    assert len(one.weights) == model.config.num_hidden_layers


@pytest.mark.parametrize("method", METHODS)
def test_batch_size_changes_nothing(method: str, tiny: Tiny):
    model = tiny("opt").double()
    one, three = (score_samples(model, SAMPLES, "logit", method, batch_size=b) for b in (1, 3))
    torch.testing.assert_close(one.get("neurons"), three.get("neurons"), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(one.get("heads"), three.get("heads"), rtol=1e-5, atol=1e-9)


def test_first_token_can_be_left_out(tiny: Tiny):
    model = tiny("llama-gqa").double()
    options: dict[str, Any] = {"components": ["neurons"], "weights": ["*down_proj"]}
    kept = score_samples(model, SAMPLES, "logit", **options)
    left = score_samples(model, SAMPLES, "logit", skip_first_token=True, **options)
    assert not torch.allclose(kept.get("neurons"), left.get("neurons"))
    for layer in range(model.config.num_hidden_layers):
        out = left.weights[f"model.layers.{layer}.mlp.down_proj.weight"].sum(0).float()
        torch.testing.assert_close(out, left.get("neurons")[layer], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", TARGETS)
def test_targets_by_their_definition(name: str, tiny: Tiny):
    model = tiny("llama-gqa").double()
    batch = collate(SAMPLES, "left")
    with torch.no_grad():
        logits = model(**batch.model_inputs(True)).logits
    found = TARGETS[name](logits, batch)
    for row, sample in enumerate(SAMPLES):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([sample.input_ids])).logits[0]
        ids, logp = sample.input_ids, alone.log_softmax(-1)
        assert sample.answer is not None
        assert sample.wrong is not None
        n = len(ids)
        expected = {
            "logit": alone[-1, sample.answer],
            "logprob": logp[-1, sample.answer],
            "logit-difference": alone[-1, sample.answer] - alone[-1, sample.wrong],
            "continuation": sum(logp[t - 1, ids[t]] for t in range(n - sample.continuation, n)),
            "next-tokens": sum(logp[t - 1, ids[t]] for t in range(1, n)),
            "next-tokens-logit": sum(alone[t - 1, ids[t]] for t in range(1, n)),
        }[name]
        assert found[row].item() == pytest.approx(float(expected), rel=1e-5)


def test_any_position_and_any_callable(tiny: Tiny):
    model = tiny("llama-gqa").double()
    named = score_samples(model, SAMPLES, Token(tokens=(3, 11, 4)))
    assert torch.allclose(named.get("heads"), score_samples(model, SAMPLES, "logit").get("heads"))
    own = score_samples(model, SAMPLES, lambda logits, batch: logits[:, 0].square().sum(-1))
    assert own.tokens is not None
    assert own.tokens[:, 1:].abs().max() == 0  # causal: only the first token matters there
    with pytest.raises(ExciseError, match="position 5 is outside a sample of 4 tokens"):
        score_samples(model, SAMPLES, Token(3, position=5))
    with pytest.raises(ExciseError, match=r"gave shape \(\) for 3 samples"):
        score_samples(model, SAMPLES, lambda logits, batch: logits.sum())


def test_samples_give_mean_and_bounds(tiny: Tiny):
    relevance = score_samples(tiny("llama-gqa"), SAMPLES, "logit")
    values = relevance.samples["heads"]
    torch.testing.assert_close(values.mean(0), relevance.get("heads"))
    low, high = relevance.interval("heads")
    half = 4.302653 * values.std(0) / 3**0.5  # Student's t, 2 degrees of freedom
    torch.testing.assert_close(high - low, 2 * half)
    with pytest.raises(ExciseError, match="bounds of heads need"):
        score_samples(tiny("llama-gqa"), SAMPLES, keep_samples=False).interval("heads")


def test_the_data_of_a_relevance_are_tokens_and_what_was_asked(tiny: Tiny):
    model, first = tiny("llama-gqa"), SAMPLES[0]
    changes = ({}, {"answer": 4}, {"wrong": 4}, {"continuation": 1}, {"answer": None})
    sets = [[replace(first, **change), *SAMPLES[1:]] for change in changes]
    for samples in sets:  # however they were batched, and by the fitter alone
        by_size = [score_samples(model, samples, batch_size=n).config["data"] for n in (1, 2, 3)]
        assert by_size == [fingerprint(samples)] * 3
    for samples in sets[:4]:
        alone = score_samples(model, iter([collate(samples[:2]), collate(samples[2:])]))
        assert alone.config["data"] == fingerprint(samples)
    assert len({fingerprint(samples) for samples in sets}) == 5


def test_state_goes_on_where_it_stopped(tiny: Tiny):
    model = tiny("opt").double()
    whole = score_samples(model, SAMPLES, "logit", weights=["*fc1"], batch_size=1)
    fitters = [RelevanceFitter(model, "logit", weights=["*fc1"]) for _ in range(3)]
    fitters[0].update(collate(SAMPLES[:1]))
    fitters[1].update(collate(SAMPLES[1:]))
    fitters[2].load_state([fitters[0].state(), fitters[1].state()])
    merged = fitters[2].result()
    torch.testing.assert_close(merged.get("neurons"), whole.get("neurons"), rtol=1e-5, atol=1e-9)
    assert merged.tokens is not None
    assert whole.tokens is not None
    torch.testing.assert_close(merged.tokens, whole.tokens, rtol=1e-5, atol=1e-9)
    assert merged.config["data"] == whole.config["data"]
    assert merged.config["relevance_by_layer"] == pytest.approx(whole.config["relevance_by_layer"])
    for name, weights in whole.weights.items():
        torch.testing.assert_close(merged.weights[name], weights, rtol=1e-5, atol=1e-9)


def test_broken_weights_are_named(tiny: Tiny):
    model = tiny("llama-gqa")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = float("nan")
    with pytest.raises(ExciseError, match=r"weight model\.layers\.1\.mlp\.up_proj\.weight holds 1"):
        score_samples(model, SAMPLES, "logit")


def test_nothing_to_score_is_refused(tiny: Tiny):
    with pytest.raises(ExciseError, match="nothing to score"):
        score_samples(tiny("llama-gqa"), SAMPLES, "logit", components=())
    with pytest.raises(ExciseError, match="steps is 0"):
        score_samples(tiny("llama-gqa"), SAMPLES, "logit", "integrated-gradients", steps=0)
    with pytest.raises(ExciseError, match="600 tokens is longer than the model's 512 positions"):
        score_samples(tiny("opt"), [Sample((3,) * 600, answer=1)], "logit")
    with pytest.raises(ExciseError, match="nothing was scored"):
        score_samples(tiny("opt"), [], "logit")


def test_rank_correlation(tiny: Tiny):
    one, two = (score_samples(tiny("opt"), SAMPLES[n:], "logit") for n in (0, 1))
    assert one.rank_correlation(one, "neurons") == pytest.approx(1.0)
    a, b = one.get("heads").flatten(), two.get("heads").flatten()
    ranks = [sorted(x.tolist()).index(v) for x in (a, b) for v in x.tolist()]  # no ties here
    n = len(a)
    squares = sum((ranks[i] - ranks[n + i]) ** 2 for i in range(n))
    expected = 1 - 6 * squares / (n * (n * n - 1))  # Spearman's formula
    assert one.rank_correlation(two, "heads") == pytest.approx(expected)
    with pytest.raises(ExciseError, match=r"holds no biases"):
        one.rank_correlation(two, "biases")


def test_a_component_named_twice_counts_once(tiny: Tiny):
    once, twice = (
        score_samples(tiny("opt"), SAMPLES, "logit", components=["heads"] * n) for n in (1, 2)
    )
    assert torch.equal(once.get("heads"), twice.get("heads"))
    assert len(twice.samples["heads"]) == len(SAMPLES)


def test_a_failed_batch_ends_the_fitter(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    fitter = RelevanceFitter(tiny("opt"), "logit")

    def out_of_memory(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fitter, "_backward", out_of_memory)
    with pytest.raises(ExciseError, match="out of memory with 3 samples of 6 tokens"):
        fitter.update(collate(SAMPLES))
    monkeypatch.undo()
    with pytest.raises(ExciseError, match="an earlier batch failed half-way"):
        fitter.update(collate(SAMPLES))


def test_an_offloaded_model_is_refused(tiny: Tiny):
    model = tiny("llama-gqa")
    model.model.layers[1].mlp.to("meta")
    with pytest.raises(ExciseError, match="are not in memory"):
        score_samples(model, SAMPLES, "logit")
