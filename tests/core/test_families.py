"""Every row of the table leads somewhere, and what is not in it is refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError, UnsupportedModelError, unknown_name
from excise.core.families import FAMILIES, ModelView, kind_of, unknown_modules
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


KINDS = (
    "llama-mha", "llama-gqa", "llama-mqa", "llama-bias", "llama-untied", "mistral", "qwen2",
    "qwen3", "gemma3", "opt", "opt-350m",
)  # fmt: skip


def test_every_kind_and_every_family_is_tested(kinds: dict[str, Any], tiny: Callable[[str], Any]):
    assert set(KINDS) == kinds.keys()
    assert {tiny(kind).config.model_type for kind in KINDS} == FAMILIES.keys()


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
    assert unknown_modules(model) == {}
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


def test_a_body_without_a_head_is_refused(tiny_llama: Any):
    with pytest.raises(UnsupportedModelError, match="LlamaModel has no 'model'"):
        ModelView.of(tiny_llama.model)


def test_near_misses_come_first():
    error = unknown_name("method", "lpr", ["random", "lrp", "gradient"])
    assert isinstance(error, ExciseError)
    assert str(error) == (
        "unknown method 'lpr': did you mean 'lrp'? known are gradient, lrp, random"
    )
