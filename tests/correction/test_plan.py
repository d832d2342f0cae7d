"""What is said of a correction before it is run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.families import ModelView
from excise.correction.plan import attribution_bytes


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_ranking_holds_a_copy_activations_and_scores(tiny: Callable[..., Any], kind: str):
    model = tiny(kind)
    own = sum(p.nbytes for p in model.parameters())
    plain, half = (
        attribution_bytes(model, 16, False, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert plain > 0  # activations alone
    assert half == own // 2 + plain // 2
    mlps = sum(
        linear.weight.numel()
        for path, linear in ModelView.of(model).layer_linears().items()
        if "mlp" in path or "fc" in path
    )
    scores = 3 * 4 * mlps
    assert attribution_bytes(model, 16, True, torch.float32) >= scores + plain
    assert attribution_bytes(model, 32, False, torch.float32) == 2 * plain
