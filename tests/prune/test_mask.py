"""A mask takes out what it says, all of it and nothing else; and puts it back bit by bit."""

import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from excise import Sample
from excise.core.errors import ExciseError
from excise.core.export import save_model
from excise.core.families import ModelView
from excise.core.loading import Loaded
from excise.lrp.methods import METHODS
from excise.lrp.relevance import Relevance
from excise.lrp.run import score_samples
from excise.lrp.scope import unreached
from excise.prune.mask import COMPONENTS, Mask, keep_rows, select
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


IDS = torch.tensor([[1, 5, 9, 17, 3, 44, 2]])
KINDS = ("llama-gqa", "llama-bias", "qwen3", "opt")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_component = pytest.mark.parametrize("component", COMPONENTS)


def relevance_of(model: Any) -> Relevance:
    """Return random scores in the shapes of a model."""
    view, draw = ModelView.of(model), torch.Generator().manual_seed(5)
    layers = len(view.layers)
    weights = {f"{path}.weight": linear.weight for path, linear in view.layer_linears().items()}
    return Relevance(
        {"n_kv_heads": view.n_kv_heads},
        heads=torch.randn(layers, view.n_heads, generator=draw),
        neurons=torch.randn(layers, view.d_mlp, generator=draw),
        weights={name: torch.randn(w.shape, generator=draw) for name, w in weights.items()},
    )


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def ablated(model: Any, mask: Mask) -> Tensor:
    """Run a model with the inputs of its mixing linears zeroed where the mask says so."""
    view = ModelView.of(model)
    with ExitStack() as stack:
        for layer, keep in zip(view.layers, mask.keep[mask.component], strict=True):
            wide = keep.repeat_interleave(view.head_dim) if mask.component == "heads" else keep
            linear = layer.attention_out if mask.component == "heads" else layer.mlp_out
            hook = linear.register_forward_pre_hook(lambda _, args, wide=wide: (args[0] * wide,))
            stack.callback(hook.remove)
        return logits_of(model)


SAMPLES = [Sample((5, 17, 3, 29, 9), answer=3), Sample((4, 8, 30), answer=5)]


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if not m.steps])
@pytest.mark.parametrize("kind", ["llama-gqa", "gemma3", "opt"])
def test_matrices_without_scores_are_refused(tiny: Callable[[str], Any], kind: str, method: str):
    model = tiny(kind)
    found = score_samples(model, SAMPLES, "logit", method, weights=["*"], components=())
    zero = {name for name, scores in found.weights.items() if not bool(scores.any())}
    paths = unreached(METHODS[method].rules, ModelView.of(model).family)
    assert zero == {name for name in found.weights for p in paths if name.endswith(f".{p}.weight")}
    assert bool(zero) == (method == "cp-lrp")
    if not zero:
        assert select(found, "weights", 0.5).keep.keys() == found.weights.keys()
        return
    for first in zero:
        some = replace(found, weights={first: found.weights[first]})
        with pytest.raises(ExciseError, match=f"^{first} has no scores under 'cp-lrp'"):
            select(some, "weights", 0.5)
    more = f"and {len(zero) - 1} more matrices have no scores"
    with pytest.raises(ExciseError, match=more) as caught:
        select(found, "weights", 0.5)
    patterns = re.findall(r"--weights '([^']+)'", str(caught.value))
    scored = score_samples(model, SAMPLES, "logit", method, weights=patterns, components=())
    assert len(select(scored, "weights", 0.5).keep) == 2 * len(patterns)


rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-9, 9), min_size=width, max_size=width), min_size=1, max_size=5
    )
)


@given(rows, st.floats(0, 1, exclude_max=True), st.sampled_from(["abs", "signed"]))
def test_each_row_loses_the_same_number_and_its_lowest(values: Any, sparsity: float, rank: Any):
    scores = torch.tensor(values, dtype=torch.float32)
    keep = keep_rows(scores, sparsity, rank)
    gone = round(sparsity * scores.shape[1])
    assert (~keep).sum(1).tolist() == [gone] * len(scores)  # ties or not
    ranked = scores.abs() if rank == "abs" else scores
    for row, kept in zip(ranked, keep, strict=True):
        assert not len(row[kept]) or not gone or row[~kept].max() <= row[kept].min()


@every_kind
@pytest.mark.parametrize("component", ["heads", "neurons"])
def test_cutting_equals_ablation(tiny: Callable[[str], Any], kind: str, component: Any):
    model = tiny(kind)
    mask = select(relevance_of(model), component, 0.4)
    dense, expected = logits_of(model), ablated(model, mask)
    assert not torch.allclose(dense, expected, atol=1e-2)
    with mask.applied(model):
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-6, atol=1e-6)
    mask.apply_(model)
    torch.testing.assert_close(logits_of(model), expected, rtol=1e-6, atol=1e-6)


@every_kind
@every_component
def test_what_goes_is_zero_and_the_rest_is_untouched(
    tiny: Callable[[str], Any], kind: str, component: Any
):
    model, original = tiny(kind), dict(tiny(kind).named_parameters())
    mask = select(relevance_of(model), component, 0.5)
    mask.apply_(model)
    for name, parameter in model.named_parameters():
        zeroed = parameter == 0
        assert torch.equal(parameter[~zeroed], original[name][~zeroed]), name
        if component == "weights" and name in mask.keep:
            assert torch.equal(zeroed, ~mask.keep[name])
        elif ".layers." not in name or "norm" in name:
            assert not zeroed.any(), name
    if component == "heads":  # keys and values may serve other heads
        assert not any((p == 0).any() for name, p in model.named_parameters() if "k_proj" in name)


@every_kind
@every_component
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_applied_leaves_no_trace(
    tiny: Callable[[str], Any], kind: str, component: Any, error: type[BaseException] | None
):
    model = tiny(kind)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = -0.0  # a zero of its own kind stays one
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (
        suppress(RuntimeError, KeyboardInterrupt),
        select(relevance_of(model), component, 0.5).applied(model) as same,
    ):
        assert same is model
        assert any(not torch.equal(before[k], t) for k, t in model.state_dict().items())
        if error:
            raise error
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name].view(torch.int32), tensor.view(torch.int32)), name
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_component
def test_counts_are_exact(tiny_llama: Any, component: Any):
    relevance = relevance_of(tiny_llama)
    for sparsity in (0.0, 0.125, 0.25, 0.5):
        mask = select(relevance, component, sparsity)
        assert mask.sparsity == pytest.approx(sparsity)
        total = sum(keep.numel() for keep in mask.keep.values())
        assert str(mask).startswith(f"{round(sparsity * total):,} of {total:,} {component} ")


def test_signed_cuts_what_speaks_against_the_target(tiny_llama: Any):
    relevance = relevance_of(tiny_llama)
    heads = relevance.get("heads")
    worst = heads == heads.min()
    assert torch.equal(
        ~select(relevance, "heads", 1 / heads.numel(), "signed").keep["heads"], worst
    )
    smallest = heads.abs() == heads.abs().min()
    assert torch.equal(~select(relevance, "heads", 1 / heads.numel()).keep["heads"], smallest)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("tokens", 0.1), "'tokens'"),
        (("head", 0.1), "did you mean 'heads'"),
        (("heads", 0.1, "sign"), "did you mean 'signed'"),
        (("heads", 1.0), "1.0"),
        (("heads", -0.1), "-0.1"),
        (("heads", float("nan")), "nan"),
    ],
)
def test_what_cannot_be_selected_is_named(tiny_llama: Any, arguments: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        select(relevance_of(tiny_llama), *arguments)
    with pytest.raises(ExciseError, match="--components neurons"):
        select(Relevance({}), "neurons", 0.1)
    with pytest.raises(ExciseError, match="--weights"):
        select(Relevance({}), "weights", 0.1)


@every_component
def test_a_mask_of_another_model_changes_nothing(tiny: Callable[[str], Any], component: Any):
    mask = select(relevance_of(tiny("llama-gqa")), component, 0.5)
    if component != "weights":  # the tiny models share all but their weights' names
        mask = Mask(component, {component: mask.keep[component][:, :-1]})
    model = tiny("opt")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ExciseError, match="of another model"):
        mask.apply_(model)
    with pytest.raises(ExciseError, match="of another model"), mask.applied(model):
        pass
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@every_kind
@every_component
def test_a_pruned_folder_loads_in_stock_transformers(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, tmp_path: Path, kind: str, component: Any
):
    model = tiny(kind)
    select(relevance_of(model), component, 0.3).apply_(model)
    save_model(Loaded(model, tiny_tokenizer, kind), tmp_path / "cut", {"verb": "prune"})
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(logits_of(stock), logits_of(model))
    assert not list((tmp_path / "cut").glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    assert tokenizer("Mary gave")["input_ids"] == tiny_tokenizer("Mary gave")["input_ids"]


@pytest.mark.parametrize("component", ["heads", "weights"])
def test_masks_come_back_from_disk(component: Any, tiny_llama: Any, tmp_path: Any):
    mask = select(relevance_of(tiny_llama), component, 0.3)
    mask.save_pretrained(tmp_path / "mask")
    read = Mask.from_pretrained(tmp_path / "mask")
    assert read.component == component
    assert read.sparsity == mask.sparsity
    assert read.keep.keys() == mask.keep.keys()
    assert all(torch.equal(read.keep[name], keep) for name, keep in mask.keep.items())
    assert all(keep.dtype == torch.bool for keep in read.keep.values())
    with pytest.raises(ExciseError, match="exists"):
        mask.save_pretrained(tmp_path / "mask")
    config = tmp_path / "mask" / "config.json"
    config.write_text(config.read_text().replace('"shapes": {', '"shapes": {"other": [3], '))
    with pytest.raises(ExciseError, match="'other' is missing"):
        Mask.from_pretrained(tmp_path / "mask")
