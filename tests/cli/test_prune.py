"""excise prune: recipes from the command line, on both families."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from excise.core.families import ModelView
from excise.prune.mask import Mask
from transformers import AutoModelForCausalLM, AutoTokenizer


Excise = Callable[..., Result]
KINDS = ("llama-gqa", "opt")
SMALL = ("--samples", 4, "--length", 16)


@pytest.mark.parametrize("kind", KINDS)
def test_default_recipe_writes_a_plain_folder(
    kind: str, excise: Excise, tiny_folder: Callable[[str], Path], text_file: Path, tmp_path: Path
):
    out = tmp_path / "out"
    arguments = ("--sparsity", 0.5, "--calibration", text_file, *SMALL, "-o", out, "--json")
    result = excise("prune", tiny_folder(kind), *arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert "peak memory about" in result.stderr
    assert "criterion=" in result.stderr  # the recipe is named
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    model, found = loaded
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    AutoTokenizer.from_pretrained(out)
    linears = ModelView.of(model).layer_linears()
    zeros = sum(int((linear.weight == 0).sum()) for linear in linears.values())
    total = sum(linear.weight.numel() for linear in linears.values())
    assert told["sparsity"] == pytest.approx(zeros / total) == pytest.approx(0.5, abs=1e-3)
    mask = Mask.from_pretrained(out / "mask")
    assert all(torch.equal(linears[n[:-7]].weight != 0, keep) for n, keep in mask.keep.items())
    recipe = json.loads((out / "excise.json").read_text())
    assert recipe["verb"] == "prune"
    assert recipe["recipe"] == told["recipe"]
    assert recipe["prompt_hashes"]
    assert str(text_file) in recipe["calibration"]
    ids = torch.tensor([[1, 5, 6]])
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_options_change_the_recipe(
    excise: Excise, tiny_folder: Callable[[str], Path], text_file: Path, tmp_path: Path
):
    out = tmp_path / "out"
    result = excise(
        "prune", tiny_folder("opt"), "--recipe", "wanda", "--scope", "2:4", "--update", "obs",
        "--damping", 0.05, "--calibration", text_file, *SMALL, "--dtype", "bfloat16", "-o", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    recipe = json.loads((out / "excise.json").read_text())["recipe"]
    chosen = {key: recipe[key] for key in ("criterion", "scope", "update", "damping", "order")}
    assert chosen == {"criterion": "wanda", "scope": "2:4", "update": "obs", "damping": 0.05,
                      "order": "sequential"}  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16  # as it was loaded
    for linear in ModelView.of(model).layer_linears().values():
        assert bool(((linear.weight != 0).view(-1, 4).sum(1) <= 2).all())


@pytest.mark.parametrize("kind", KINDS)
def test_calibrating_on_what_the_model_writes(
    kind: str, excise: Excise, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        result = excise("prune", tiny_folder(kind), "--sparsity", 0.5, "--calibration", "self",
                        *SMALL, "--seed", seed, "-o", out)  # fmt: skip
        assert result.exit_code == 0, result.output
    masks = [torch.cat([k.flatten() for k in Mask.from_pretrained(out / "mask").keep.values()])
             for out in outs]  # fmt: skip
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_dry_run_names_recipe_time_and_memory(
    excise: Excise, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    result = excise("prune", tiny_folder("llama-gqa"), "--sparsity", 0.5, *SMALL, "--dry-run",
                    "--json", "-o", tmp_path / "out")  # fmt: skip
    assert result.exit_code == 0, result.output
    planned = json.loads(result.stdout)
    assert planned["peak"] > 0
    assert planned["recipe"]["sparsity"] == 0.5
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_offload_changes_nothing_but_memory(
    kind: str, excise: Excise, tiny_folder: Callable[[str], Path], text_file: Path, tmp_path: Path
):
    arguments = ("prune", tiny_folder(kind), "--sparsity", 0.5, "--calibration", text_file, *SMALL)
    assert excise(*arguments, "-o", tmp_path / "a").exit_code == 0
    result = excise(*arguments, "-o", tmp_path / "b", "--offload", tmp_path)
    assert result.exit_code == 0, result.output
    assert "weights on disk" in result.stderr
    assert "gradients read all weights from disk" in result.stderr
    names = [sorted(p.name for p in (tmp_path / out).rglob("*")) for out in "ab"]
    assert names[0] == names[1]
    for name in ("model.safetensors", "config.json", "generation_config.json", "excise.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_resume_goes_on_and_cleans_up(
    excise: Excise,
    tiny_folder: Callable[[str], Path],
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from excise.prune.progress import Progress

    save, out = Progress.save_layer, tmp_path / "out"
    arguments = ("prune", tiny_folder("opt"), "--sparsity", 0.5, "--calibration", text_file,
                 *SMALL, "--resume", "-o", out)  # fmt: skip

    def stop(self: Any, step: int, index: int, *given: Any) -> None:
        save(self, step, index, *given)
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "save_layer", stop)
    first = excise(*arguments)
    assert first.exit_code == 130
    assert not out.exists()
    assert "repeat the command" in first.stderr
    monkeypatch.setattr(Progress, "save_layer", save)
    assert excise(*arguments).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_recipes_and_sparsities(
    kind: str, excise: Excise, tiny_folder: Callable[[str], Path], text_file: Path, tmp_path: Path
):
    out = tmp_path / "table"
    arguments = (
        "prune", tiny_folder(kind), "--compare", "wanda,sparsegpt,lrp", "--sweep", "0.3,0.6",
        "--calibration", text_file, *SMALL, "--perplexity", text_file, "--window", 32,
        "--limit", 4, "-o", out, "--json",
    )  # fmt: skip
    result = excise(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [(trial["name"], trial["recipe"]["sparsity"]) for trial in found["trials"]]
    assert names == [(n, s) for n in ("wanda", "sparsegpt", "lrp") for s in (0.3, 0.6)]
    for trial in found["trials"]:
        low, high = trial["perplexity"]["ci"]
        assert low <= trial["perplexity"]["value"] <= high
        assert trial["seconds"] > 0
        assert trial["peak"] >= 0
    assert json.loads((out / "config.json").read_text())["trials"] == found["trials"]
    page = (out / "table.html").read_text()
    assert "Perplexity by sparsity" in page
    assert "sparsegpt" in page
    # one alone gives the same number: the model was dense again in between
    alone = excise(*arguments[:3], "lrp", "--sweep", "0.6", *arguments[6:-3], "--json")
    (trial,) = json.loads(alone.stdout)["trials"]
    assert trial["perplexity"] == found["trials"][-1]["perplexity"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sparsity", "0.5"), "-o FOLDER"),
        (("-o", "x"), "--sparsity 0.5, or --scope 2:4"),
        (("--scope", "2:4", "--sparsity", "0.3", "-o", "x"), "leave --sparsity out"),
        (("--recipe", "wnada", "--sparsity", "0.5", "-o", "x"), "did you mean 'wanda'"),
        (("--components", "rows", "--sparsity", "0.5", "-o", "x"), "unknown component 'rows'"),
        (("--sweep", "0.3,half"), "'half' is no number"),
        (("--sweep", "0.3", "--components", "heads"), "leave it out here"),
        (("--sweep", "0.3", "--scope", "2:4"), "leave --sweep out"),
        (("--sparsity", "0.5", "--calibration", "no.txt", "-o", "x"), "no.txt"),
        (("--sparsity", "0.5", "--resume"), "-o FOLDER"),
        (("--sparsity", "0.5", "--rank", "signed", "-o", "x"), "--rank is for --relevance"),
        (("--sparsity", "0.5", "--window", "9", "-o", "x"), "--window is for tables"),
        (("--sparsity", "0.5", "--compensate", "-o", "x"), "weights are zeroed"),
        (("--compare", "wanda", "--recipe", "best"), "name it in --compare"),
        (("--scope", "3:5", "-o", "x"), "q_proj, which is 32 x 32"),
        (("--sparsity", "0.5", "--damping", "nan", "-o", "x"), "damping is nan"),
        (("--sparsity", "0.5", "--floor", "0.9", "-o", "x"), "do not hold the sparsity 0.5"),
        (("--sparsity", "0.5", "--samples", "0", "-o", "x"), "at least 1 sample"),
        (
            ("--sparsity", "0.5", "--calibration", "self", "--length", "600", "-o", "x"),
            "512 positions",
        ),
        (("--sparsity", "0.5", "--layer-device", "gpu", "-o", "x"), "layers cannot be computed"),
        (("--sparsity", "0.5", "--offload", "none", "-o", "x"), "no folder at"),
        (("--sparsity", "0.5", "--offload", ".", "--device", "cuda", "-o", "x"), "--layer-device"),
        (("--compare", "wanda", "--offload", "."), "holds a copy of the dense one"),
        (
            ("--components", "neurons", "--sparsity", "0.5", "--offload", ".", "-o", "x"),
            "for recipes of weights",
        ),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...],
    said: str,
    excise: Excise,
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    result = excise("prune", tiny_folder("llama-gqa"), *arguments)
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]  # what is planned may stand before it
    assert line.startswith("excise: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []
