"""Edits: what they scale in a live model, how they compose, what they are on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from excise.edits.apply import bind
from excise.edits.changes import Change
from excise.edits.compose import components, compose, diff
from excise.edits.edit import Edit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


Folder = Callable[..., Path]
KINDS = ["llama-gqa", "llama-bias", "mistral", "qwen2", "qwen3", "gemma3", "opt", "opt-350m"]
IDS = torch.tensor([[5, 17, 9, 80, 33, 2]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def bits(model: Any) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_is_what_hooks_on_the_activations_do(kind: str, tiny: Callable[..., Any]):
    """The oracle scales what the two output linears read, and leaves the weights alone."""
    model = tiny(kind).double()
    view = ModelView.of(model)
    edit = Edit(heads={(0, 1): 0.0, (1, 3): -0.5}, neurons={(0, 4): 0.5, (1, 0): 0.0, (1, 23): 2})

    def scaling(units: dict[int, float], width: int) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            scaled = inputs[0].clone()
            for unit, factor in units.items():
                scaled[..., unit * width : (unit + 1) * width] *= factor
            return scaled

        return hook

    hooks = []
    for index, layer in enumerate(view.layers):
        for units, module, width in (
            (edit.heads, layer.attention_out, view.head_dim),
            (edit.neurons, layer.mlp_out, 1),
        ):
            here = {unit: factor for (at, unit), factor in units.items() if at == index}
            hooks.append(module.register_forward_pre_hook(scaling(here, width)))
    expected = logits(model)
    for hook in hooks:
        hook.remove()
    plain, before = logits(model), bits(model)
    with edit.applied(model) as same:
        assert same is model
        found = logits(model)
    assert torch.allclose(found, expected, atol=1e-10)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert bits(model) == before


def test_weights_and_biases(tiny: Callable[..., Any]):
    model = tiny("opt")
    name, bias = "model.decoder.layers.1.fc1.weight", "model.decoder.layers.0.fc2.bias"
    edit = Edit(
        weights={name: (torch.tensor([40, 3]), torch.tensor([0.5, -2.0]))},
        biases={bias: torch.arange(32.0)},
    )
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    edit.apply_(model)
    after = model.state_dict()
    assert {key for key in after if not torch.equal(after[key], before[key])} == {name, bias}
    assert torch.equal(after[bias], before[bias] + torch.arange(32.0))
    expected = before[name].clone()
    expected[0, 3] *= -2.0
    expected[1, 8] *= 0.5
    assert torch.equal(after[name], expected)


def test_undone_after_an_exception_and_only_what_was_set(tiny: Callable[..., Any]):
    model = tiny("llama-gqa").bfloat16()
    state = {n: t.view(torch.int16).clone() for n, t in model.state_dict().items()}
    edit = Edit(heads={(0, 0): 0.0, (1, 2): 0.3}, neurons={(0, 7): 0.1})

    def fail() -> None:
        with edit.applied(model), Edit(heads={(0, 0): 0.5}).applied(model):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(torch.equal(t.view(torch.int16), state[n]) for n, t in model.state_dict().items())


def test_removed_weights_are_plus_zero_and_rounding_is_once():
    change = Change(torch.arange(3), torch.tensor([0.0, 1 / 3, 0.7], dtype=torch.float64))
    values = torch.tensor([-3.0, 5.0, 1.1], dtype=torch.float32)
    new = change.apply(values)
    assert str(new[0].item()) == "0.0"
    assert new[1] == torch.tensor(5.0 * (1 / 3), dtype=torch.float64).float()
    assert new[2] == (values[2].double() * 0.7).float()
    with pytest.raises(ExciseError, match="beyond float16"):
        Change(torch.arange(1), torch.tensor([1e6]).double()).apply(torch.ones(1).half())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": {(2, 0): 0.0}}, "no layer 2 in 2"),
        ({"heads": {(1, 4): 0.0}}, "no head 4 in layer 1, which has 4 heads"),
        ({"neurons": {(0, 24): 0.0}}, "no neuron 24 in layer 0, which has 24"),
        ({"weights": {"lm_head.weight": ([0], [0.0])}}, "no weight matrix lm_head.weight"),
        ({"weights": {"model.embed_tokens.weight": ([0], [0.0])}}, "no weight matrix model.embed"),
        (
            {"weights": {"model.layers.0.mlp.up_proj.weight": ([24 * 32], [0.0])}},
            "no weight 768 in a matrix of 24 x 32",
        ),
        ({"biases": {"model.layers.0.mlp.down_proj.bias": [0.0] * 32}}, "no output bias"),
    ],
)
def test_components_that_a_model_lacks(
    arguments: dict[str, Any], message: str, tiny: Callable[..., Any]
):
    model = tiny("llama-gqa")
    weights = {
        name: (torch.tensor(i), torch.tensor(f))
        for name, (i, f) in arguments.get("weights", {}).items()
    }
    biases = {name: torch.tensor(v) for name, v in arguments.get("biases", {}).items()}
    edit = Edit(**{**arguments, "weights": weights, "biases": biases})
    before = bits(model)
    with pytest.raises(ExciseError, match=message):
        edit.apply_(model)
    assert bits(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": {(0, 0): float("nan")}}, "factor of the heads is nan"),
        ({"neurons": {(0, 0): float("inf")}}, "factor of the neurons is inf"),
        ({"neurons": {(-1, 0): 0.0}}, "-1 among the neurons"),
        ({"heads": {(0, 1.5): 0.0}}, "1.5 among the heads"),
        ({"weights": {"w": (torch.tensor([1, 1]), torch.ones(2))}}, "there twice"),
        ({"weights": {"w": (torch.tensor([-1]), torch.ones(1))}}, "negative"),
        ({"weights": {"w": (torch.tensor([1]), torch.ones(2))}}, "1 indices and 2 factors"),
        ({"weights": {"w": (torch.tensor([1]), torch.tensor([torch.nan]))}}, "NaN"),
        ({"biases": {"b": torch.tensor([torch.inf])}}, "NaN or infinite"),
    ],
)
def test_edits_that_make_no_sense(arguments: dict[str, Any], message: str):
    with pytest.raises(ExciseError, match=message):
        Edit(**arguments)


UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"
FACTORS = st.sampled_from([0.0, 0.5, -0.5, 0.1, 1 / 3, 2.0])
HEADS = st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 3)), FACTORS, max_size=4)
NEURONS = st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 23)), FACTORS, max_size=6)


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """Draw an edit of the tiny Llama: columns, and weights that may lie in them."""
    weights = {}
    for name in (UP, DOWN):
        found = draw(st.dictionaries(st.integers(0, 767), FACTORS, max_size=5))
        if found:
            weights[name] = (torch.tensor(list(found)), torch.tensor(list(found.values())))
    return Edit(heads=draw(HEADS), neurons=draw(NEURONS), weights=weights)


@settings(max_examples=50)
@given(st.lists(edits(), min_size=2, max_size=4), st.randoms())
def test_composing_does_not_depend_on_the_order(several: list[Edit], random: Any):
    found: dict[Any, set[float]] = {}
    for edit in several:
        for key, factor in components(edit).items():
            found.setdefault(key, set()).add(factor)
    shuffled = random.sample(several, len(several))
    if len({edit.digest for edit in several}) < len(several):
        with pytest.raises(ExciseError, match="there twice"):
            compose(several)
    elif any(len(factors) > 1 for factors in found.values()):
        with pytest.raises(ExciseError, match="conflict: ") as conflict:
            compose(several)
        with pytest.raises(ExciseError) as same:
            compose(shuffled)
        assert str(same.value) == str(conflict.value)
    else:
        whole = compose(several)
        assert components(whole) == {key: factor for key, (factor,) in found.items()}
        assert compose(shuffled).digest == whole.digest


@given(edits(), edits())
def test_a_difference_is_what_it_takes(one: Edit, other: Edit):
    found = diff(one, other)
    turned = components(one)
    for key in found.only_a:
        del turned[key]
    turned.update(found.only_b)
    turned.update({key: pair[1] for key, pair in found.changed.items()})
    assert turned == components(other)
    assert all(components(one)[key] == pair[0] for key, pair in found.changed.items())
    assert found.none == (one.digest == other.digest)
    assert diff(one, one).none


def test_conflicts_are_named():
    one = Edit(neurons={(1, 7): 0.0, (1, 8): 0.5}, heads={(0, 2): 0.0})
    other = Edit(neurons={(1, 7): 0.5, (1, 8): 0.0})
    with pytest.raises(ExciseError, match=r"neuron 7 of layer 1 is scaled by .* \(and 1 more\)"):
        compose([one, other])
    b = torch.ones(32)
    with pytest.raises(ExciseError, match="both make up for it in a bias"):
        compose([Edit(heads={(0, 2): 0.0, (0, 3): 0.0}, biases={"b": b}),
                 Edit(heads={(0, 2): 0.0}, biases={"b": 2 * b})])  # fmt: skip
    summed = compose([Edit(heads={(0, 2): 0.0}, biases={"b": b}),
                      Edit(heads={(0, 3): 0.0}, biases={"b": 2 * b})])  # fmt: skip
    assert torch.equal(summed.biases["b"], 3 * b.double())
    with pytest.raises(ExciseError, match="at least one"):
        compose([])
    assert compose([one]) is one


def test_weights_in_a_scaled_column_take_both_factors(tiny: Callable[..., Any]):
    one = Edit(neurons={(1, 2): 1 / 3})
    other = Edit(weights={DOWN: (torch.tensor([2, 3]), torch.tensor([0.7, 0.7]))})
    found = []
    for order in ([one, other], [other, one]):
        model = tiny("llama-gqa")
        before = model.get_parameter(DOWN).detach().clone()
        compose(order).apply_(model)
        found.append(model.get_parameter(DOWN).detach())
    expected = before.double()
    expected[:, 2] *= 1 / 3
    expected[0, 2:4] *= torch.tensor(0.7).double()
    assert torch.equal(found[0], expected.float())
    assert torch.equal(*found)


def test_minus_zero_is_zero():
    weights = [{"w": (torch.tensor([1]), torch.tensor([zero]))} for zero in (0.0, -0.0)]
    one, other = (
        Edit(heads={(0, 0): zero}, weights=w) for zero, w in zip((0.0, -0.0), weights, strict=True)
    )
    assert one.digest == other.digest


@pytest.fixture
def saved(checkpoint: Folder, tmp_path: Path) -> tuple[Edit, Path]:
    """Return a bound edit of all kinds, and its folder."""
    name = "model.decoder.layers.0.self_attn.v_proj.weight"
    edit = Edit(
        heads={(1, 2): 0.0},
        neurons={(0, n): 1 / 3 for n in range(20)},
        weights={name: (torch.tensor([9, 1]), torch.tensor([0.5, 0.1]))},
        biases={"model.decoder.layers.0.fc2.bias": torch.randn(32)},
    )
    edit = bind(edit, checkpoint("opt"), "my opt", {"method": "x"}, {"toxicity": [0.2, 0.1]})
    edit.save_pretrained(tmp_path / "edit")
    return edit, tmp_path / "edit"


def test_round_trip(saved: tuple[Edit, Path], tmp_path: Path):
    edit, path = saved
    again = Edit.from_pretrained(path)
    assert again.digest == edit.digest
    assert again.config == edit.config
    assert components(again) == components(edit)
    assert str(again) == str(edit)
    again.save_pretrained(tmp_path / "again")
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md", "config.json", "edit.safetensors",
    ]  # fmt: skip
    for file in path.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    assert edit.digest[:12] in (path / "README.md").read_text()
    with pytest.raises(ExciseError, match="exists"):
        edit.save_pretrained(path)


def test_hashes_can_be_made_again_by_hand(saved: tuple[Edit, Path], checkpoint: Folder):
    import hashlib

    from safetensors.torch import load_file

    lines, shas = [], {}
    for name, tensor in sorted(load_file(checkpoint("opt") / "model.safetensors").items()):
        shas[name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        lines.append(f"{name} F32 {'x'.join(map(str, tensor.shape))} {shas[name]}\n")
    base = json.loads((saved[1] / "config.json").read_text())["base"]
    assert base["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert base["touched"] == {name: shas[name] for name in base["touched"]}
    layers = "model.decoder.layers."
    assert list(base["touched"]) == [
        f"{layers}{name}"
        for name in (
            "0.fc2.bias", "0.fc2.weight", "0.self_attn.v_proj.weight", "1.self_attn.out_proj.weight"
        )
    ]  # fmt: skip


def test_an_unbound_edit_is_no_artefact(tmp_path: Path, checkpoint: Folder):
    with pytest.raises(ExciseError, match="bind it"):
        Edit(heads={(0, 0): 0.0}).save_pretrained(tmp_path / "edit")
    with pytest.raises(ExciseError, match="changes nothing"):
        bind(Edit(), checkpoint("opt"))


def test_composed_edits_are_artefacts(checkpoint: Folder, tmp_path: Path):
    base = checkpoint("llama-gqa")
    one = bind(Edit(heads={(0, 0): 0.0}), base, recipe={"n": 1})
    other = bind(Edit(neurons={(1, 3): 0.5}), base, recipe={"n": 2})
    for name, order in (("a", [one, other]), ("b", [other, one])):
        compose(order).save_pretrained(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    config = Edit.from_pretrained(tmp_path / "a").config
    assert {part["recipe"]["n"] for part in config["recipe"]["composed"]} == {1, 2}
    assert config["base"]["touched"] == {**one.base["touched"], **other.base["touched"]}
    third = bind(Edit(heads={(0, 1): 0.0}), checkpoint("llama-gqa", seed=1))
    with pytest.raises(ExciseError, match="different checkpoints do not compose"):
        compose([one, third])
