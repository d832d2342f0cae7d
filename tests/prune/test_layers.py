"""Layers run alone give what the model gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.data import Sample, collate
from excise.core.families import ModelView
from excise.prune.layers import Flow, observed


def prompts(lengths: tuple[int, ...]) -> list[Sample]:
    draw = torch.Generator().manual_seed(sum(lengths))
    return [Sample(tuple(torch.randint(3, 160, (n,), generator=draw).tolist())) for n in lengths]


def test_flow_equals_the_model(tiny: Callable[[str], Any], kinds: dict[str, Any]):
    for kind in kinds:
        view = ModelView.of(tiny(kind))
        batches = [collate(prompts((9, 7)), "left"), collate(prompts((5, 8)), "right")]
        flow = Flow.begin(view, batches)
        outputs = list(flow.through(0, view.layers[0], "cpu"))
        for at, batch in enumerate(batches):
            given = batch.model_inputs(view.family.passes_position_ids)
            with torch.no_grad():
                hidden = view.model(**given, output_hidden_states=True).hidden_states
            real = batch.attention_mask.bool()
            assert torch.equal(flow.hidden[at][real], hidden[0][real]), kind
            torch.testing.assert_close(outputs[at][real], hidden[1][real], msg=kind)


def test_layers_are_left_as_they_were(tiny_llama: Any, tiny_opt: Any):
    for model in (tiny_llama, tiny_opt):
        view = ModelView.of(model)
        with pytest.raises(IndexError):  # a token that is not in the vocabulary
            Flow.begin(view, [collate([Sample((3, 999))])])
        Flow.begin(view, [collate(prompts((4,)))])
        assert not any("forward" in vars(layer.module) for layer in view.layers)


def test_inputs_of_linears_are_seen(tiny_llama: Any):
    view = ModelView.of(tiny_llama)
    flow = Flow.begin(view, [collate(prompts((6, 6))), collate(prompts((4,)))])
    seen: list[tuple[Any, tuple[int, ...]]] = []
    layer = view.layers[0]
    with observed([layer.mlp_out], lambda linear, x: seen.append((linear, tuple(x.shape)))):
        flow.advance(0, layer, "cpu")
    assert seen == [(layer.mlp_out, (2, 6, view.d_mlp)), (layer.mlp_out, (1, 4, view.d_mlp))]
    list(flow.through(1, view.layers[1], "cpu"))
    assert len(seen) == 2


def test_a_layer_keeps_a_forward_of_its_own(tiny_llama: Any):
    view = ModelView.of(tiny_llama)
    layer = view.layers[0].module
    own = layer.forward
    layer.forward = own  # as accelerate's hooks do
    Flow.begin(view, [collate(prompts((4,)))])
    assert vars(layer)["forward"] is own
