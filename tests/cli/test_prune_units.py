"""excise prune --components: whole units from the command line, on both families."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from excise import Relevance
from excise.cli.prune import command
from excise.cli.prune_options import OF_RECIPES
from excise.core.families import ModelView
from excise.prune.mask import Mask
from excise.prune.structured.model import DEFAULT_UNIT_CRITERION
from excise.prune.structured.shrink import STRUCTURED
from excise.prune.structured.units import UNIT_CRITERIA
from transformers import AutoModelForCausalLM, AutoTokenizer


Excise = Callable[..., Result]
Folder = Callable[[str], Path]
FAMILIES = ("llama-gqa", "opt")
CASES = [(kind, c) for kind in FAMILIES for c in STRUCTURED if (kind, c) != ("opt", "heads")]


@pytest.fixture
def small(text_file: Path) -> tuple[Any, ...]:
    return ("--calibration", text_file, "--samples", 4, "--length", 16)


def loaded(folder: Path) -> Any:
    """Load with stock transformers; every tensor is where it belongs, and the model writes."""
    both: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, found = both
    assert not any(found.values()), found
    AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[1, 5, 6]])
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    settings["attention_mask"] = torch.ones_like(ids)
    assert model.generate(ids, **settings).shape == (1, 6)
    return model


def count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def units(model: Any, component: str) -> int:
    view = ModelView.of(model)
    return {"neurons": view.d_mlp, "heads": view.n_heads, "layers": len(view.layers)}[component]


def recipe_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "excise.json").read_text())


@pytest.mark.parametrize(("kind", "component"), CASES)
def test_units_are_taken_out(
    kind: str, component: str, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    out, model = tmp_path / "out", tiny_folder(kind)
    arguments = ("prune", model, "--components", component, "--sparsity", 0.5, *small)
    dry = excise(*arguments, "--dry-run", "--json")
    assert dry.exit_code == 0
    assert list(tmp_path.iterdir()) == []
    result = excise(*arguments, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    planned, told = json.loads(dry.stdout), json.loads(result.stdout)
    assert planned["peak"] > 0
    assert "peak memory about" in result.stderr
    del planned["peak"], planned["seconds"]
    assert told == {"output": str(out), **planned}
    dense, cut = AutoModelForCausalLM.from_pretrained(model), loaded(out)
    assert units(cut, component) == units(dense, component) / 2
    assert told["sparsity"] == told["asked"] == 0.5
    assert told["criterion"] == DEFAULT_UNIT_CRITERION[component]
    assert told["parameters"] == {"before": count(dense), "after": count(cut)}
    assert count(cut) < count(dense)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (out, model)]
    assert sizes[0] < sizes[1]
    mask = Mask.from_pretrained(out / "mask")
    assert mask.component == component
    assert mask.sparsity == 0.5
    recipe = recipe_of(out)
    assert recipe["verb"] == "prune"
    assert recipe["criterion"] == DEFAULT_UNIT_CRITERION[component]
    assert recipe["prompt_hashes"]
    assert str(small[1]) in recipe["calibration"]
    assert excise("eval", out, "--task", "ioi", "--samples", 4).exit_code == 0


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_says_what_it_does(
    kind: str, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    out, model = tmp_path / "out", tiny_folder(kind)
    before = f"{count(AutoModelForCausalLM.from_pretrained(model)):,}"
    arguments = ("prune", model, "--components", "neurons", "--criterion", "flap", *small)
    dry = excise(*arguments, "--sparsity", 0.25, "--dry-run")
    said = f"12 of 48 neurons (25.00 %) by flap: {before} -> "
    assert dry.stdout.startswith(f"would cut {said}")
    assert dry.stdout.count("\n") == 1
    done = excise(*arguments, "--sparsity", 0.25, "-o", out)
    assert done.stdout == dry.stdout.replace("would cut", "cut") + f"written to {out}\n"
    assert done.stderr.startswith(f"flap: {UNIT_CRITERIA['flap'].summary}\n")
    again = excise("prune", out, *arguments[2:], "--sparsity", 0.25, "-o", tmp_path / "twice")
    assert again.exit_code == 0, again.output
    assert recipe_of(tmp_path / "twice")["before"] == recipe_of(out)


@pytest.mark.parametrize("name", UNIT_CRITERIA)
def test_every_criterion(
    name: str, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    for component in UNIT_CRITERIA[name].components:
        masks = []
        for out in (tmp_path / f"{component}-{run}" for run in "ab"):
            chosen = ("--components", component, "--criterion", name, "--sparsity", 0.5)
            result = excise("prune", tiny_folder("llama-gqa"), *chosen, *small, "-o", out)
            assert result.exit_code == 0, result.output
            masks.append(Mask.from_pretrained(out / "mask").keep[component])
            told = recipe_of(out)["prompt_hashes"]
            assert (told != "none") == UNIT_CRITERIA[name].needs_data
        assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("kind", "component"), [("llama-gqa", "neurons"), ("llama-gqa", "heads"), ("opt", "heads")]
)
def test_zero_keeps_the_shape(
    kind: str, component: str, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    out, model = tmp_path / "out", tiny_folder(kind)
    result = excise("prune", model, "--components", component, "--zero", "--sparsity", 0.25,
                    *small, "-o", out, "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "parameters" not in json.loads(result.stdout)
    cut, dense = loaded(out), AutoModelForCausalLM.from_pretrained(model)
    assert count(cut) == count(dense)
    mask = Mask.from_pretrained(out / "mask")
    assert mask.sparsity == 0.25
    mask.apply_(dense)
    assert all(torch.equal(w, cut.state_dict()[n]) for n, w in dense.state_dict().items())


def test_zero_compares_all_layers_and_says_so(
    excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    for name in ("fisher", "wanda"):
        arguments = ("--components", "neurons", "--criterion", name, "--zero", "--sparsity", 0.5)
        out = tmp_path / name
        result = excise("prune", tiny_folder("llama-gqa"), *arguments, *small, "-o", out)
        assert ("another thing in each" in result.stderr) == (name == "wanda")
        keep = Mask.from_pretrained(out / "mask").keep["neurons"]
        assert int(keep.sum()) == 24
        assert int(keep[0].sum()) != 12


@pytest.mark.parametrize(
    ("kind", "component"), [("llama-gqa", "neurons"), ("llama-gqa", "heads"), ("opt", "neurons")]
)
def test_means_go_into_biases(
    kind: str, component: str, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path
):
    arguments = ("prune", tiny_folder(kind), "--components", component, "--sparsity", 0.5, *small)
    assert excise(*arguments, "-o", tmp_path / "plain").exit_code == 0
    result = excise(*arguments, "--compensate", "-o", tmp_path / "mended", "--json")
    assert result.exit_code == 0, result.output
    plain, mended = (loaded(tmp_path / name) for name in ("plain", "mended"))
    assert json.loads(result.stdout)["parameters"]["after"] == count(mended)
    assert recipe_of(tmp_path / "mended")["compensate"] is True
    for one, two in zip(ModelView.of(plain).layers, ModelView.of(mended).layers, strict=True):
        pair = (one.mlp_out, two.mlp_out)
        if component == "heads":
            pair = (one.attention_out, two.attention_out)
        assert torch.equal(pair[0].weight, pair[1].weight)
        bias = torch.zeros(()) if pair[0].bias is None else pair[0].bias
        assert not torch.allclose(bias, pair[1].bias)


@pytest.mark.parametrize(("kind", "component"), [*CASES[:2], ("opt", "neurons")])
@pytest.mark.parametrize("rank", ["abs", "signed"])
def test_relevance_takes_out(
    kind: str, component: str, rank: str, excise: Excise, tiny_folder: Folder, scored: Folder,
    small: Any, tmp_path: Path,
):  # fmt: skip
    source = ("--relevance", scored(kind), "--components", component, "--rank", rank)
    arguments = ("prune", tiny_folder(kind), *source, "--sparsity", 0.5)
    dry = excise(*arguments, "--dry-run", "--json")
    for name, more in (("out", ()), ("mended", ("--compensate", *small))):
        result = excise(*arguments, *more, "-o", tmp_path / name, "--json")
        assert result.exit_code == 0, result.output
    told, recipe = json.loads(dry.stdout), recipe_of(tmp_path / "out")
    assert told["parameters"]["after"] == count(loaded(tmp_path / "out"))
    relevance = Relevance.from_pretrained(scored(kind))
    assert recipe["relevance"] == relevance.config
    assert recipe["rank"] == rank
    assert "calibration" not in recipe
    assert recipe_of(tmp_path / "mended")["calibration"]
    loaded(tmp_path / "mended")
    scores = relevance.get(component) if rank == "signed" else relevance.get(component).abs()
    group = 2 if component == "heads" else 1
    sums = scores.unflatten(1, (-1, group)).sum(2)
    keep = Mask.from_pretrained(tmp_path / "out" / "mask").keep[component]
    kept = keep.unflatten(1, (-1, group)).all(2)
    for row, stays in zip(sums, kept, strict=True):
        assert row[~stays].max() <= row[stays].min()


@pytest.mark.parametrize("kind", FAMILIES)
def test_relevance_of_weights_zeroes(
    kind: str, excise: Excise, tiny_folder: Folder, scored: Folder, tmp_path: Path
):
    arguments = ("prune", tiny_folder(kind), "--relevance", scored(kind), "--sparsity", 0.5)
    result = excise(*arguments, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    keep = Mask.from_pretrained(tmp_path / "out" / "mask").keep
    state = loaded(tmp_path / "out").state_dict()
    assert all(torch.equal(state[name] != 0, kept) for name, kept in keep.items())
    assert recipe_of(tmp_path / "out")["zero"] is True


def test_a_relevance_of_another_model(
    excise: Excise, tiny_folder: Folder, scored: Folder, tmp_path: Path
):
    arguments = ("prune", tiny_folder("llama-mha"), "--relevance", scored("llama-gqa"),
                 "--components", "neurons", "--sparsity", 0.5, "-o", tmp_path / "out")  # fmt: skip
    refused = excise(*arguments)
    assert refused.exit_code == 1
    assert "the model's weights differ" in refused.stderr
    assert excise(*arguments, "--other-model").exit_code == 0


NEURONS = ("--components", "neurons", "--sparsity", "0.5")
LAYERS = ("--components", "layers", "--sparsity", "0.5")
BAD = [
    (("--components", "neurons"), "--sparsity 0.2"),
    (("--components", "neurons", "--sparsity", "1.5"), "sparsity is 1.5"),
    (("--components", "neurons", "--sparsity", "nan"), "sparsity is nan"),
    (("--components", "layers", "--sparsity", "0.9"), "ask for 0.5 or less"),
    ((*NEURONS, "--criterion", "wnada"), "did you mean 'wanda'"),
    ((*NEURONS, "--criterion", "block-influence"), "scores layers, not neurons"),
    ((*LAYERS, "--criterion", "flap"), "not layers: for these take one of fisher"),
    ((*NEURONS, "--rank", "abs"), "--rank is for --relevance"),
    ((*NEURONS, "--other-model"), "--other-model is for --relevance"),
    ((*NEURONS, "--zero", "--compensate"), "--compensate is for what is removed"),
    ((*LAYERS, "--zero"), "--zero is for neurons and heads"),
    ((*LAYERS, "--compensate"), "--compensate is for neurons and heads"),
    ((*LAYERS, "--relevance", "scored"), "--relevance has no scores of layers"),
    ((*NEURONS, "--calibration", "no.txt"), "no.txt"),
    ((*NEURONS, "--relevance", "scored", "--criterion", "wanda"), "--criterion makes scores"),
    ((*NEURONS, "--relevance", "scored", "--rank", "up"), "unknown rank 'up'"),
    ((*NEURONS, "--relevance", "nothing"), "nothing"),
    (("--sparsity", "0.5", "--relevance", "scored", "--update", "obs"), "with --relevance"),
    (("--sparsity", "0.5", "--relevance", "scored", "--compensate"), "--compensate is for"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, excise: Excise, tiny_folder: Folder, scored: Folder,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = [scored("llama-gqa") if word == "scored" else word for word in arguments]
    expect_one_line(excise("prune", tiny_folder("llama-gqa"), *given, "-o", "x"), said)
    assert list(tmp_path.iterdir()) == []


def expect_one_line(result: Result, said: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


OPTIONS = {parameter.name: parameter for parameter in command.params}


OF_WEIGHTS = [name for name in OF_RECIPES if name in OPTIONS and name != "criterion"]


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_options_of_recipes_are_refused(name: str, excise: Excise, tiny_folder: Folder):
    option: Any = OPTIONS[name]
    value = () if option.is_flag else ({"recipe": "best"}.get(name, 1),)
    arguments = (*NEURONS, option.opts[0], *value, "-o", "x")
    result = excise("prune", tiny_folder("opt"), *arguments)
    expect_one_line(result, f"{option.opts[0]} is for recipes of weights")


@pytest.mark.parametrize("more", [(), ("--compensate",), ("--dry-run",)])
def test_what_no_config_can_say_is_refused_before_scoring(
    more: Any, excise: Excise, tiny_folder: Folder, small: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    import excise.lrp.run as engine

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("scored")

    monkeypatch.setattr(engine, "_score_all", fail)
    heads = ("--components", "heads", "--sparsity", 0.5, *small, "-o", tmp_path / "out", *more)
    expect_one_line(excise("prune", tiny_folder("opt"), *heads), "set heads to zero (--zero)")
    neurons = ("--components", "neurons", *heads[2:], "--compensate")
    expect_one_line(excise("prune", tiny_folder("mistral"), *neurons), "--compensate")
    assert list(tmp_path.iterdir()) == []
