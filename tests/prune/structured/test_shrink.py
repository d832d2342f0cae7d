"""What is taken out leaves the model that has it at zero, in a folder stock transformers loads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from excise.core.errors import ExciseError, UnsupportedModelError
from excise.core.families import FAMILIES, ModelView
from excise.prune.mask import Mask
from excise.prune.structured.shrink import STRUCTURED, StructuredComponent, select_uniform, shrink
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


IDS = torch.tensor([[1, 5, 9, 17, 3, 44, 2, 80, 61, 7], [1, 90, 12, 4, 33, 21, 5, 5, 18, 100]])
LLAMAS = ("llama-mha", "llama-gqa", "llama-bias", "llama-untied")
KINDS = (*LLAMAS, "llama-mqa", "mistral", "qwen2", "qwen3", "gemma3", "opt", "opt-350m")
HEADED = (*LLAMAS, "mistral", "qwen2", "qwen3", "gemma3")
CASES = [
    *((kind, "neurons") for kind in KINDS),
    *((kind, "heads") for kind in HEADED),
    *((kind, "layers") for kind in KINDS),
]
every_case = pytest.mark.parametrize(("kind", "component"), CASES)
Build = Callable[..., Any]


@pytest.fixture(scope="session")
def build(kinds: dict[str, tuple[str, dict[str, Any]]]) -> Build:
    """Return `build(kind, **changes)`: a float64 model of another config, all parameters random."""

    def make(kind: str, **changes: Any) -> Any:
        name, arguments = kinds[kind]
        config = getattr(transformers, name)(**{**arguments, **changes})
        model = AutoModelForCausalLM.from_config(config).double().eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
                parameter.copy_(noise * (0.3 if parameter.ndim > 1 else 0.5))
        return model

    return make


def deep(kind: str) -> dict[str, Any]:
    """Return config changes to five layers, with short windows where a family has them."""
    changes: dict[str, Any] = {"num_hidden_layers": 5}
    mixed = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    if kind == "mistral":
        changes["sliding_window"] = 4
    elif kind.startswith("qwen"):
        changes |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    elif kind == "gemma3":
        changes |= {"sliding_window": 4, "layer_types": [*mixed, "sliding_attention"]}
    return changes


def scores_of(view: ModelView, component: str, seed: int = 5) -> Tensor:
    draw, layers = torch.Generator().manual_seed(seed), len(view.layers)
    shape = {"neurons": (layers, view.d_mlp), "heads": (layers, view.n_heads), "layers": (layers,)}
    return torch.randn(shape[component], generator=draw)


def half(model: Any, component: Any, seed: int = 5) -> Mask:
    view = ModelView.of(model)
    return select_uniform(scores_of(view, component, seed), component, 0.5, view)


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def without(model: Any, mask: Mask) -> Tensor:
    """Return the logits with components at zero, or with layers that hand on what they read."""
    if mask.component != "layers":
        with mask.applied(model):
            return logits_of(model)
    skipped = [
        layer.module
        for layer, keep in zip(ModelView.of(model).layers, mask.keep["layers"], strict=True)
        if not keep
    ]
    hooks = [
        module.register_forward_hook(
            lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
        )
        for module in skipped
    ]
    try:
        return logits_of(model)
    finally:
        for hook in hooks:
            hook.remove()


def state_of(model: Any) -> dict[str, Any]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {**tensors, "config": json.dumps(model.config.to_dict(), default=str)}


def unchanged(model: Any, before: dict[str, Any]) -> bool:
    after = state_of(model)
    assert list(after) == list(before)
    return all(
        torch.equal(value, before[name]) if isinstance(value, Tensor) else value == before[name]
        for name, value in after.items()
    )


def reloaded(model: Any, folder: Path) -> Any:
    """Return the model through a folder, and insist that stock code has nothing to remark."""
    model.save_pretrained(folder)
    assert not {"auto_map", "quantization_config"} & set(
        json.loads((folder / "config.json").read_text())
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="auto", trust_remote_code=False
    )
    stock, info = loaded
    assert not any(info.values()), info
    assert type(stock) is type(model)
    assert type(stock.config) is type(model.config)
    return stock


def loads_and_generates(model: Any, folder: Path) -> None:
    """Insist that stock code builds the same model, and that both generate with their cache."""
    stock = reloaded(model, folder)
    assert torch.equal(logits_of(stock), logits_of(model))
    built = dict(stock.named_modules())
    assert list(built) == list(dict(model.named_modules()))
    for path, module in model.named_modules():  # every size, index and switch a module holds
        for name, value in vars(module).items():
            spare = "rotary" in path and name not in vars(built[path])  # of a sort that is gone
            if isinstance(value, int | float | str) and name != "name_or_path" and not spare:
                assert vars(built[path])[name] == value, (path, name)
    for one in (stock, model):
        texts = [
            one.generate(
                IDS,
                attention_mask=torch.ones_like(IDS),
                max_new_tokens=8,
                min_new_tokens=8,
                do_sample=False,
                use_cache=cache,
            )
            for cache in (True, False)
        ]
        assert torch.equal(*texts)
        assert texts[0].shape == (2, 18)


@every_case
def test_the_rest_computes_what_it_did(build: Build, kind: str, component: StructuredComponent):
    model = build(kind, **deep(kind))
    mask = half(model, component)
    dense, expected = logits_of(model), without(model, mask)
    assert not torch.allclose(dense, expected, atol=1e-3)
    size = sum(parameter.numel() for parameter in model.parameters())
    shrink(model, mask)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-10)
    assert sum(parameter.numel() for parameter in model.parameters()) < size
    view, kept = ModelView.of(model), mask.keep[component]
    found = {"neurons": view.d_mlp, "heads": view.n_heads, "layers": len(view.layers)}
    assert found[component] == kept.view(-1, kept.shape[-1]).sum(1)[0]


@every_case
def test_stock_transformers_builds_the_same_model(
    build: Build, kind: str, component: StructuredComponent, tmp_path: Path
):
    model = build(kind, **deep(kind)).float()  # buffers of a wider dtype are made anew on loading
    shrink(model, half(model, component))
    loads_and_generates(model, tmp_path / "small")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("left", ["sliding_attention", "full_attention"])
def test_one_sort_of_attention_may_be_left(build: Build, kind: str, left: str, tmp_path: Path):
    model = build(kind, **deep(kind)).float()
    keep = torch.tensor([sort == left for sort in model.config.layer_types])
    mask = Mask("layers", {"layers": keep})
    expected = without(model, mask)
    shrink(model, mask)
    assert set(model.config.layer_types) == {left}
    assert torch.equal(logits_of(model), expected)
    loads_and_generates(model, tmp_path / "small")


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "gemma3"])
def test_one_after_the_other(build: Build, kind: str, tmp_path: Path):
    model, other = build(kind, **deep(kind)), build(kind, **deep(kind)).float()
    for component in STRUCTURED:
        mask = half(model, component)
        expected = without(model, mask)
        shrink(model, mask)
        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-10)
    for component in reversed(STRUCTURED):  # independent choices: any order
        shrink(other, half(other, component))
    assert ModelView.of(other).d_mlp == ModelView.of(model).d_mlp == 12
    assert torch.equal(logits_of(reloaded(other, tmp_path / "small")), logits_of(other))


@settings(max_examples=12)
@given(seed=st.integers(0, 999), sparsity=st.floats(0, 0.9), component=st.sampled_from(STRUCTURED))
def test_any_share_of_odd_sizes(
    build: Build, seed: int, sparsity: float, component: StructuredComponent
):
    odd = {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 6}
    model = build("mistral", num_hidden_layers=3, intermediate_size=11, **odd)
    view = ModelView.of(model)
    mask = select_uniform(scores_of(view, component, seed), component, min(sparsity, 0.8), view)
    expected = without(model, mask)
    shrink(model, mask)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("component", STRUCTURED)
def test_only_the_cut_parameters_are_new(tiny: Build, component: StructuredComponent):
    model = tiny("llama-bias").to(torch.bfloat16)
    view = ModelView.of(model)
    view.layers[1].mlp_in[0].weight.requires_grad_(False)
    view.layers[1].attention_out.weight.requires_grad_(False)
    model.model.layers[1].mlp.train()
    before = dict(model.named_parameters())
    mask = half(model, component)
    shrink(model, mask)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    cut = {"neurons": "mlp", "heads": "self_attn", "layers": "nothing"}[component]
    moved = int(mask.keep["layers"].nonzero()[0]) if component == "layers" else None
    for name, parameter in model.named_parameters():
        old = before[name if moved is None else name.replace("layers.0.", f"layers.{moved}.")]
        output_bias = name.endswith(("down_proj.bias", "o_proj.bias"))
        assert (parameter is old) == (cut not in name or output_bias), name
        assert parameter.dtype == torch.bfloat16
        assert parameter.requires_grad == old.requires_grad
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.numel() * 2
    assert model.model.layers[-1].mlp.training == (moved != 0)
    assert not model.training


def test_windows_and_indices_move_along(build: Build):
    model = build("qwen3", **deep("qwen3"))  # two layers that see everything, then three windows
    keep = torch.tensor([False, True, True, False, True])
    shrink(model, Mask("layers", {"layers": keep}))
    config = model.config
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert (config.num_hidden_layers, config.max_window_layers) == (3, 1)
    attentions = [layer.attention for layer in ModelView.of(model).layers]
    assert [attention.layer_idx for attention in attentions] == [0, 1, 2]
    assert [attention.sliding_window for attention in attentions] == [None, 4, 4]


def ones(*shape: int, off: tuple[tuple[int, ...], ...] = ()) -> Tensor:
    keep = torch.ones(shape, dtype=torch.bool)
    for at in off:
        keep[at] = False
    return keep


REFUSED: list[tuple[str, str, Tensor, str]] = [
    ("llama-gqa", "weights", ones(2, 2), "set them to zero with mask.apply_"),
    ("llama-gqa", "head", ones(2, 4), "did you mean 'heads'"),
    ("llama-gqa", "neurons", ones(2, 23), r"of another model: neurons is \(2, 23\)"),
    ("llama-gqa", "layers", ones(3), r"of another model: layers is \(3,\)"),
    ("llama-gqa", "neurons", ones(2, 24, off=((1, 3),)), "24 neurons in layer 0 and 23 in layer 1"),
    ("llama-gqa", "neurons", ones(2, 24, off=((1,),)), "keeps no neurons in layer 1"),
    ("llama-gqa", "layers", ones(2) < 0, "keeps no layers: at least one"),
    ("llama-gqa", "heads", ones(2, 4, off=((0, 3), (1, 2))), "part of heads 2 to 3 in layer 0"),
    ("llama-mqa", "heads", ones(2, 4, off=((0, 3), (1, 2))), "part of heads 0 to 3 in layer 0"),
    ("llama-mha", "heads", ones(2, 4, off=((0, 3), (1, 2))), "3 heads do .* keep 1 or 2 or 4 "),
    ("opt", "heads", ones(2, 4, off=((0, 3), (1, 2))), "cut neurons or layers"),
]


@pytest.mark.parametrize(("kind", "component", "keep", "named"), REFUSED)
def test_what_is_refused_changes_nothing(
    tiny: Build, kind: str, component: Any, keep: Tensor, named: str
):
    model = tiny(kind)
    before = state_of(model)
    with pytest.raises(ExciseError, match=named) as raised:
        shrink(model, Mask(component, {component: keep}))
    assert "\n" not in str(raised.value)
    assert unchanged(model, before)


@pytest.mark.parametrize("component", STRUCTURED)
def test_quantised_and_wrapped_models_are_refused(tiny: Build, component: StructuredComponent):
    names = {"__module__": "bitsandbytes.nn.modules", "__qualname__": "Linear4bit"}
    Linear4bit = type("Linear4bit", (nn.Linear,), names)  # noqa: N806 - as bitsandbytes calls it

    model = tiny("llama-gqa")
    mask = half(model, component)
    model.model.layers[1].mlp.up_proj = Linear4bit(32, 24, bias=False)
    before = state_of(model)
    with pytest.raises(ExciseError, match=r"layers\.1\.mlp\.up_proj is quantised"):
        shrink(model, mask)
    assert unchanged(model, before)
    with pytest.raises(UnsupportedModelError):
        shrink(nn.ModuleDict({"model": tiny("llama-gqa")}).get_submodule("model.model"), mask)


def test_layers_of_other_sizes_are_refused(tiny: Build):
    model, other = tiny("llama-gqa"), tiny("llama-gqa")
    mask = half(model, "neurons")
    shrink(other, mask)
    model.model.layers[1] = other.model.layers[1]
    before = state_of(model)
    with pytest.raises(ExciseError, match="differ in size"):
        shrink(model, mask)
    assert unchanged(model, before)


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="not checked before")
@pytest.mark.parametrize("kind", ["llama-mha", "mistral", "qwen2", "qwen3", "gemma3"])
def test_rows_know_which_numbers_of_heads_load(build: Build, kind: str):
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}
    if FAMILIES[build(kind).config.model_type].head_counts == "any":
        assert ModelView.of(build(kind, **heads)).n_heads == 3
    else:
        with pytest.raises(Exception, match="not a multiple of the number of attention"):
            build(kind, **heads)


def test_layers_are_not_set_to_zero(tiny_llama: Any):
    mask = half(tiny_llama, "layers")
    assert str(mask) == "1 of 2 layers (50.00 %)"
    with pytest.raises(ExciseError, match="take them out with shrink"):
        mask.apply_(tiny_llama)
