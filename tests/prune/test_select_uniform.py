"""The same number of units stays in each layer: the highest, heads as whole KV groups."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.prune.structured.shrink import STRUCTURED, select_uniform
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor


@pytest.fixture(scope="session")
def tiny_view(tiny: Callable[[str], Any]) -> ModelView:
    return ModelView.of(tiny("llama-gqa"))


def scores_of(view: ModelView, component: str, seed: int = 5) -> Tensor:
    draw, layers = torch.Generator().manual_seed(seed), len(view.layers)
    shape = {"neurons": (layers, view.d_mlp), "heads": (layers, view.n_heads), "layers": (layers,)}
    return torch.randn(shape[component], generator=draw)


shares = st.floats(0, 1, exclude_max=True)


@given(
    st.sampled_from(STRUCTURED), shares, st.integers(1, 30), st.integers(1, 4), st.integers(1, 9)
)
def test_each_layer_keeps_the_same_number_of_its_highest(
    tiny_view: ModelView, component: Any, sparsity: float, units: int, together: int, multiple: int
):
    layers = units if component == "layers" else 2
    view = replace(tiny_view, layers=tiny_view.layers[:1] * layers, d_mlp=units)
    view = replace(view, n_kv_heads=units, n_heads=units * together)
    scores = scores_of(view, component, units).mul(2).round()  # with ties
    multiple = multiple if component == "neurons" else 1
    gone = round(sparsity * units)
    if gone == units:
        with pytest.raises(ExciseError, match=f"leaves none of {units} "):
            select_uniform(scores, component, sparsity, view, multiple)
        return
    keep = select_uniform(scores, component, sparsity, view, multiple).keep[component]
    assert (keep.shape, keep.dtype) == (scores.shape, torch.bool)
    size = together if component == "heads" else 1
    rows, kept = scores.view(-1, units, size).sum(2), keep.view(-1, units, size)
    assert torch.equal(kept.any(2), kept.all(2))
    stays = next(n for n in range(units - gone, units + 1) if n % multiple == 0 or n == units)
    for row, stay in zip(rows, kept.all(2), strict=True):
        assert int(stay.sum()) == stays
        assert stay.all() or row[~stay].max() <= row[stay].min()


@pytest.mark.parametrize(
    ("component", "sparsity", "named", "change"),
    [
        ("neuron", 0.5, "did you mean 'neurons'", {}),
        ("weights", 0.5, "known are heads, layers, neurons", {}),
        ("neurons", 1.0, "sparsity is 1.0", {}),
        ("neurons", -0.1, "sparsity is -0.1", {}),
        ("neurons", float("nan"), "sparsity is nan", {}),
        ("neurons", 0.99, "none of 24 neurons of a layer: ask for 0.9583 or less", {}),
        ("heads", 0.8, "none of 2 KV groups of a layer: ask for 0.5 or less", {}),
        ("layers", 0.8, "none of 2 layers: ask for 0.5 or less", {}),
        ("neurons", 0.5, "multiple_of is 0", {"multiple_of": 0}),
        ("heads", 0.5, "for neurons only", {"multiple_of": 2}),
    ],
)
def test_what_cannot_be_selected_is_named(
    tiny_view: ModelView, component: Any, sparsity: float, named: str, change: Any
):
    known = component if component in STRUCTURED else "neurons"
    with pytest.raises(ExciseError, match=named):
        select_uniform(scores_of(tiny_view, known), component, sparsity, tiny_view, **change)


def test_scores_that_are_none_are_named(tiny_view: ModelView):
    with pytest.raises(ExciseError, match=r"neurons are \(2, 23\), and this model has \(2, 24\)"):
        select_uniform(torch.ones(2, 23), "neurons", 0.5, tiny_view)
    with pytest.raises(ExciseError, match="NaN in places"):
        select_uniform(torch.tensor([1.0, torch.nan]), "layers", 0.5, tiny_view)
