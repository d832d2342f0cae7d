"""The bias takes up the mean of what went, where the family's plain config has a place for one."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from excise.core.data import Batch, Sample, batches, collate
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.prune.mask import Mask
from excise.prune.structured.compensation import mean_inputs_of
from excise.prune.structured.shrink import StructuredComponent, select_uniform, shrink
from torch import Tensor
from transformers import AutoModelForCausalLM


SAMPLES = [
    Sample((1, 5, 9, 17, 3, 44, 2)),
    Sample((1, 90, 12)),
    Sample((1, 33, 21, 5, 5, 18, 100, 7, 8)),
    Sample((1, 60)),
]
IDS = torch.tensor([[1, 5, 9, 17, 3, 44, 2, 80, 61, 7]])
Build = Callable[..., Any]

ABLE = [
    ("llama-gqa", "neurons", "mlp_bias"),
    ("llama-gqa", "heads", "attention_bias"),
    ("llama-mha", "heads", "attention_bias"),
    ("llama-bias", "neurons", None),
    ("llama-bias", "heads", None),
    ("qwen3", "heads", "attention_bias"),
    ("gemma3", "heads", "attention_bias"),
    ("opt", "neurons", None),
    ("opt-350m", "neurons", None),
    ("opt-no-bias", "neurons", "enable_bias"),
]
every_able = pytest.mark.parametrize(("kind", "component", "switch"), ABLE)
UNABLE = [
    ("mistral", "neurons"),
    ("mistral", "heads"),
    ("qwen2", "neurons"),
    ("qwen2", "heads"),
    ("qwen3", "neurons"),
    ("gemma3", "neurons"),
]


@pytest.fixture
def build(tiny: Build, kinds: dict[str, Any]) -> Build:
    """Return `build(kind)`: a float64 model; `opt-no-bias` is OPT without biases."""

    def make(kind: str) -> Any:
        if kind != "opt-no-bias":
            return tiny(kind).double()
        torch.manual_seed(0)
        config = transformers.OPTConfig(**kinds["opt"][1], enable_bias=False, init_std=0.3)
        return AutoModelForCausalLM.from_config(config).double().eval()

    return make


def outputs(model: Any, component: str) -> list[Any]:
    layers = ModelView.of(model).layers
    return [layer.mlp_out if component == "neurons" else layer.attention_out for layer in layers]


def inputs_alone(model: Any, component: str, samples: Sequence[Sample]) -> list[Tensor]:
    """Return what each output linear reads, (tokens, in), from samples run one by one."""
    seen: list[list[Tensor]] = [[] for _ in outputs(model, component)]
    with ExitStack() as stack, torch.no_grad():
        for rows, linear in zip(seen, outputs(model, component), strict=True):
            hook = linear.register_forward_pre_hook(
                lambda _, args, rows=rows: rows.append(args[0].reshape(-1, args[0].shape[-1]))
            )
            stack.callback(hook.remove)
        for sample in samples:
            model(torch.tensor([sample.input_ids]), use_cache=False)
    return [torch.cat(rows) for rows in seen]


def half(model: Any, component: StructuredComponent) -> Mask:
    view = ModelView.of(model)
    units = view.d_mlp if component == "neurons" else view.n_heads
    scores = torch.randn(len(view.layers), units, generator=torch.Generator().manual_seed(5))
    return select_uniform(scores, component, 0.5, view)


def wide(model: Any, mask: Mask) -> Tensor:
    """Return (layers, in) of the output linears: true where their input stays."""
    size = ModelView.of(model).head_dim if mask.component == "heads" else 1
    return mask.keep[mask.component].repeat_interleave(size, 1)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen3", "gemma3", "opt", "opt-350m"])
@pytest.mark.parametrize("component", ["neurons", "heads"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_means_are_over_tokens_and_not_padding(
    build: Build, kind: str, component: StructuredComponent, side: Any
):
    model = build(kind)
    expected = [rows.mean(0) for rows in inputs_alone(model, component, SAMPLES)]
    padded = [collate(SAMPLES[:3], side), collate(SAMPLES[3:], side)]
    for source in (model, ModelView.of(model)):
        means = mean_inputs_of(source, padded, component)
        assert list(means) == [0, 1]
        for index, mean in means.items():
            assert mean.dtype == torch.float64
            torch.testing.assert_close(mean, expected[index], rtol=0, atol=1e-6)  # norms: float32


def test_means_leave_no_trace(build: Build):
    model = build("opt").float()
    expected = mean_inputs_of(model, batches(SAMPLES, 2), "neurons")
    model.train()
    model.model.decoder.layers[1].self_attn.eval()
    flags, state = [module.training for module in model.modules()], state_of(model)

    def failing() -> Any:
        yield collate(SAMPLES)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mean_inputs_of(model, failing(), "neurons")
    means = mean_inputs_of(model, batches(SAMPLES, 2), "neurons")
    assert all(torch.equal(means[index], mean) for index, mean in expected.items())  # no dropout
    assert not any(mean.requires_grad for mean in means.values())
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(linear._forward_pre_hooks for linear in outputs(model, "neurons"))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("component", "given", "named"),
    [
        ("neurons", [], "there are no tokens"),
        ("neurons", [Batch(torch.ones(1, 2).long(), torch.zeros(1, 2).long())], "are no tokens"),
        ("layers", [], "no mean inputs for layers"),
        ("neuron", [], "did you mean 'neurons'"),
    ],
)
def test_means_of_nothing_are_refused(tiny_llama: Any, component: Any, given: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        mean_inputs_of(tiny_llama, given, component)


@every_able
def test_what_went_leaves_its_mean(
    build: Build, kind: str, component: StructuredComponent, switch: str | None
):
    model = build(kind)
    mask, means = half(model, component), mean_inputs_of(model, batches(SAMPLES, 2), component)
    keep, gone = wide(model, mask), {}
    plain = build(kind)
    shrink(plain, mask)
    with ExitStack() as stack:  # the dense model, with a constant in the place of what goes
        for index, linear in enumerate(outputs(model, component)):
            gone[index] = torch.where(keep[index], 0.0, means[index])
            stack.callback(
                linear.register_forward_pre_hook(
                    lambda _, args, index=index: (args[0] * keep[index] + gone[index],)
                ).remove
            )
        expected = logits_of(model)
    shrink(model, mask, means)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-10)
    assert not torch.allclose(logits_of(plain), expected, atol=1e-3)


@every_able
def test_the_mean_output_stays(
    build: Build, kind: str, component: StructuredComponent, switch: str | None
):
    model, dense = build(kind), build(kind)
    mask, means = half(model, component), mean_inputs_of(model, batches(SAMPLES, 2), component)
    rows, keep = inputs_alone(dense, component, SAMPLES), wide(model, mask)
    shrink(model, mask, means)
    pairs = zip(outputs(model, component), outputs(dense, component), strict=True)
    for index, (small, large) in enumerate(pairs):
        before, after = large(rows[index]).mean(0), small(rows[index][:, keep[index]]).mean(0)
        torch.testing.assert_close(after, before, rtol=0, atol=1e-6)  # norms compute in float32


@every_able
def test_new_biases_are_zero_but_for_the_output(
    build: Build, kind: str, component: StructuredComponent, switch: str | None, tmp_path: Path
):
    model = build(kind).float()
    names, own = set(model.state_dict()), dict(model.config.to_dict())
    for parameter in ModelView.of(model).layers[0].module.parameters():
        parameter.requires_grad_(False)
    shrink(model, half(model, component), mean_inputs_of(model, [collate(SAMPLES)], component))
    new = {name for name in model.state_dict() if name not in names}
    assert bool(new) == (switch is not None)
    written = {ModelView.of(model).path(linear) for linear in outputs(model, component)}
    for name in new:
        tensor = model.get_parameter(name)
        assert bool(tensor.any()) == (name.removesuffix(".bias") in written), name
        assert tensor.requires_grad == (".layers.0." not in name)
    changed = {key for key, value in model.config.to_dict().items() if value != own.get(key)}
    sizes = {"intermediate_size", "ffn_dim", "head_dim", "num_attention_heads"}
    assert changed - sizes - {"num_key_value_heads"} == {switch} - {None}

    model.save_pretrained(tmp_path / "small")
    assert "auto_map" not in json.loads((tmp_path / "small" / "config.json").read_text())
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "small", output_loading_info=True, dtype="auto"
    )
    stock, info = loaded
    assert not any(info.values()), info
    assert torch.equal(logits_of(stock), logits_of(model))
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    settings["attention_mask"] = torch.ones_like(IDS)
    cached, bare = (stock.generate(IDS, use_cache=on, **settings) for on in (True, False))
    assert torch.equal(cached, bare)


@pytest.mark.parametrize(("kind", "component"), UNABLE)
def test_a_family_without_a_place_for_it_is_refused(
    build: Build, kind: str, component: StructuredComponent
):
    model = build(kind)
    before, own = state_of(model), model.config.to_dict()
    means = mean_inputs_of(model, [collate(SAMPLES)], component)
    with pytest.raises(ExciseError, match=r"has no bias for .*: shrink without mean_inputs"):
        shrink(model, half(model, component), means)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == own


MEAN = torch.ones(24)


@pytest.mark.parametrize(
    ("component", "means", "named"),
    [
        ("neurons", {}, r"of layers \[\], and the model has 0 to 1"),
        ("neurons", {0: MEAN}, r"of layers \[0\], "),
        ("neurons", {0: MEAN, 1: MEAN, 2: MEAN}, r"of layers \[0, 1, 2\], "),
        ("neurons", {0: MEAN, 1: MEAN[1:]}, r"layer 1 are \(23,\), and .*down_proj reads \(24,\)"),
        ("heads", {0: MEAN, 1: MEAN}, r"layer 0 are \(24,\), and .*o_proj reads \(32,\)"),
        ("neurons", {0: MEAN, 1: MEAN * torch.nan}, "1.mlp.down_proj would be NaN or infinite"),
        ("neurons", {0: MEAN, 1: MEAN * 1e9}, "infinite in torch.float16"),
        ("layers", {0: MEAN, 1: MEAN}, "no mean inputs for layers"),
    ],
)
def test_means_that_do_not_fit_change_nothing(
    tiny: Build, component: StructuredComponent, means: Any, named: str
):
    model = tiny("llama-gqa").half()
    view = ModelView.of(model)
    shape = {"neurons": (2, 24), "heads": (2, 4), "layers": (2,)}[component]
    mask = select_uniform(
        torch.arange(1.0, 1 + 2 * 24)[: torch.Size(shape).numel()].view(shape), component, 0.5, view
    )
    before, own = state_of(model), model.config.to_dict()
    with pytest.raises(ExciseError, match=named):
        shrink(model, mask, means)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == own
    assert list(before) == list(model.state_dict())
