"""Every row of the table leads somewhere, and what is not in it is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise import Sample
from excise.core.classes import OWN, kind_of, unknown_modules
from excise.core.errors import ExciseError, UnsupportedModelError, finer, unknown_name
from excise.core.families import FAMILIES, ModelView
from excise.lrp.run import score_samples
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm


KINDS = (
    "llama-mha", "llama-gqa", "llama-mqa", "llama-bias", "llama-untied", "mistral", "qwen2",
    "qwen3", "gemma3", "opt", "opt-350m",
)  # fmt: skip


def test_every_kind_and_every_family_is_tested(kinds: dict[str, Any], tiny: Callable[[str], Any]):
    assert set(KINDS) == kinds.keys()
    assert {tiny(kind).config.model_type for kind in KINDS} == FAMILIES.keys() == OWN.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_has_the_shapes_of_the_model(tiny: Callable[[str], Any], kind: str):
    model = tiny(kind)
    view = ModelView.of(model)
    assert len(view.layers) == 2
    assert (view.d_model, view.d_mlp, view.n_heads) == (32, 24, 4)
    assert view.n_kv_heads == {"llama-mha": 4, "llama-mqa": 1, "opt": 4, "opt-350m": 4}.get(kind, 2)
    for layer in view.layers:
        out, query = layer.attention_out, layer.query_key[0]
        assert isinstance(out, nn.Linear)
        assert isinstance(query, nn.Linear)
        assert out.in_features == query.out_features == view.n_heads * view.head_dim
        assert isinstance(layer.mlp_out, nn.Linear)
        assert layer.mlp_out.in_features == view.d_mlp
        assert len(layer.mlp_in) == 1 + view.family.gated
        assert view.path(layer.mlp_out).startswith(layer.path)
        assert kind_of(layer.activation) in ("silu", "gelu_tanh", "relu")
    assert unknown_modules(model, model.config.model_type) == {}
    linears = [w for path, w in model.named_parameters() if ".layers." in path and w.ndim == 2]
    assert [linear.weight.shape for linear in view.layer_linears().values()] == [
        weight.shape for weight in linears
    ]
    assert all(model.get_submodule(path) is m for path, m in view.layer_linears().items())


def test_another_type_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16))
    with pytest.raises(UnsupportedModelError) as caught:
        ModelView.of(model)
    message = str(caught.value)
    assert "'gpt2'" in message
    assert "transformer.h.0.attn.c_attn (Conv1D)" in message
    assert all(name in message for name in FAMILIES)
    assert "\n" not in message


class Swish(nn.Module):
    """An activation that no rule is known for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x times its sigmoid."""
        return x * x.sigmoid()


def test_an_unknown_module_is_refused(tiny_llama: Any):
    tiny_llama.model.layers[1].mlp.act_fn = Swish()
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.mlp\.act_fn \(Swish\)"):
        ModelView.of(tiny_llama)


class Threefold(LlamaMLP):
    """An MLP that multiplies with one more gate."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the stock class would, of a threefold product."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * self.up_proj(x))


class LayerNorm(nn.LayerNorm):
    """A norm by its name, which normalises otherwise."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch calls it so
        """Return the input over its largest element."""
        return input / input.abs().amax(-1, keepdim=True)


def _threefold(model: Any) -> None:
    model.model.layers[1].mlp.__class__ = Threefold


def _norm(model: Any) -> None:
    model.model.norm = LayerNorm(32)


def _attention(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.__class__ = type("LlamaAttention", (type(attention),), {})


def _body(model: Any) -> None:
    model.model.__class__ = type("LlamaModel", (type(model.model),), {})


def _layer(model: Any) -> None:
    layer = model.model.layers[0]
    layer.__class__ = type("MyLayer", (type(layer),), {})


def _other_family(model: Any) -> None:
    model.model.norm = Qwen2RMSNorm(32)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_threefold, r"model\.layers\.1\.mlp \(Threefold\)"),
        (_norm, r"model\.norm \(.*test_families\.LayerNorm\)"),
        (_attention, r"model\.layers\.0\.self_attn \(.*test_families\.LlamaAttention\)"),
        (_body, r"for model \(.*test_families\.LlamaModel\)"),
        (_layer, r"model\.layers\.0 \(MyLayer\)"),
        (_other_family, r"model\.norm \(transformers.*\.Qwen2RMSNorm\)"),
    ],
)
def test_a_class_of_ones_own_is_refused_whatever_its_name(
    tiny_llama: Any, change: Callable[[Any], None], named: str
):
    change(tiny_llama)
    with pytest.raises(UnsupportedModelError, match=named):
        ModelView.of(tiny_llama)


@pytest.mark.parametrize("key", ["final_logit_softcapping", "attn_logit_softcapping"])
def test_soft_caps_are_refused_by_name(tiny: Callable[[str], Any], key: str):
    model = tiny("gemma3")
    setattr(model.config, key, 2.0)
    with pytest.raises(UnsupportedModelError, match=rf"{key} = 2\.0: use a checkpoint"):
        ModelView.of(model)


def test_compiled_models_are_refused_as_compiled(tiny: Callable[[str], Any]):
    compiled = tiny("llama-gqa")
    compiled.compile()
    inside = tiny("opt")
    inside.model.decoder.layers[1].compile()
    wrapped = tiny("llama-gqa")
    wrapped.model.layers[0] = torch.compile(wrapped.model.layers[0])
    plain = tiny("llama-gqa")
    for model, where in (
        (compiled, "the model"),
        (inside, r"model\.decoder\.layers\.1"),
        (wrapped, r"model\.layers\.0"),
        (torch.compile(plain), "the model"),
    ):
        with pytest.raises(UnsupportedModelError, match=f"^{where} is compiled, .*_orig_mod"):
            ModelView.of(model)
    ModelView.of(plain)


def test_a_gelu_is_known_by_what_it_computes():
    assert kind_of(nn.GELU()) == "gelu"
    assert kind_of(nn.GELU(approximate="tanh")) == "gelu_tanh"


def test_a_body_without_a_head_is_refused(tiny_llama: Any):
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no 'model'"):
        ModelView.of(tiny_llama.model)


def test_weights_that_are_nowhere_are_named():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=8, num_attention_heads=2,
                                             num_hidden_layers=1, vocab_size=9))  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"not in memory \(offloaded, or on the device"):
        ModelView.of(model)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.float16, "use --dtype float32"),
        (torch.bfloat16, "use --dtype float32"),
        (torch.float32, "use --dtype float64"),
        (torch.float64, "no --dtype is finer than float64: try other samples, or another model"),
    ],
)
def test_what_helps_depends_on_the_precision(dtype: torch.dtype, said: str, tiny_llama: Any):
    assert finer(dtype) == said
    model = tiny_llama.to(dtype)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.finfo(dtype).max)  # every weight is finite
    with pytest.raises(ExciseError, match=said):
        score_samples(model, [Sample((5, 17, 3, 29, 9), answer=3)], "logit")


def test_near_misses_come_first():
    error = unknown_name("method", "lpr", ["random", "lrp", "gradient"])
    assert isinstance(error, ExciseError)
    assert str(error) == (
        "unknown method 'lpr': did you mean 'lrp'? known are gradient, lrp, random"
    )
