"""One hash per checkpoint, another for any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.identity import check_finite, model_hash
from excise.core.loading import LoadOptions, load_model


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_one_hash_in_any_wider_precision(
    tiny: Callable[[str], Any], tmp_path: Path, tiny_tokenizer: Any, kind: str
):
    tiny(kind).bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    hashes = {
        model_hash(load_model(str(tmp_path), LoadOptions(dtype=dtype)).model)
        for dtype in ("auto", "bfloat16", "float32")
    }
    assert len(hashes) == 1
    assert hashes != {model_hash(tiny(kind))}  # rounding is a change


def test_any_change_counts(tiny: Callable[..., Any]):
    model = tiny("llama-gqa")
    before = model_hash(model)
    assert before == model_hash(tiny("llama-gqa"))
    assert before != model_hash(tiny("llama-gqa", seed=1))
    for name, parameter in model.named_parameters():
        value = parameter.detach().flatten()[0].clone()
        with torch.no_grad():
            parameter.view(-1)[0] = torch.nextafter(value, value + 1)
            assert model_hash(model) != before, name
            parameter.view(-1)[0] = value
    assert model_hash(model) == before
    with torch.no_grad():  # the same values in another order, and under other names
        first, second = (layer.mlp.down_proj for layer in model.model.layers)
        first.weight.data, second.weight.data = second.weight.data, first.weight.data
    assert model_hash(model) != before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_weight_is_named(tiny_opt: Any, value: float):
    check_finite(tiny_opt)
    with torch.no_grad():
        tiny_opt.model.decoder.layers[1].fc2.bias[:2] = value
    with pytest.raises(ExciseError, match=r"decoder\.layers\.1\.fc2\.bias holds 2 values"):
        check_finite(tiny_opt)
