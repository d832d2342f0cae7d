"""Edits on folders: the right bits change, nothing else does, and all of it can be undone."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.loading import model_folder
from excise.core.memory import peak
from excise.edits.apply import apply_edit, bind, revert_edit
from excise.edits.edit import Edit
from excise.edits.verify import verify_edit
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file


Folder = Callable[..., Path]
SHAPES = ["float32", "bfloat16", "float16-sharded", "float32-sharded"]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file, by its path in the folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(one: Path, other: Path) -> bool:
    """Compare weights by their bits."""
    a, b = tensors(one), tensors(other)
    return a.keys() == b.keys() and all(
        torch.equal(a[n].view(torch.uint8), b[n].view(torch.uint8)) for n in a
    )


HEADS, NEURONS = Edit(heads={(0, 1): 0.0, (1, 3): -0.7}), Edit(neurons={(0, 4): 1 / 3, (1, 0): 0})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["llama-gqa", "llama-untied", "qwen3", "gemma3", "opt"])
def test_apply_verify_revert(kind: str, shape: str, checkpoint: Folder, tmp_path: Path):
    base = checkpoint(kind, shape)
    opt = kind == "opt"
    value = f"model.{'decoder.' if opt else ''}layers.1.self_attn.v_proj.weight"
    edit = Edit(
        heads=HEADS.heads,
        neurons=NEURONS.neurons,
        weights={value: (torch.tensor([0, 5]), torch.tensor([0.0, 1.5]))},
        biases={"model.decoder.layers.1.fc2.bias": torch.full((32,), 0.3)} if opt else {},
    )
    edit = bind(edit, base)
    written = apply_edit(base, edit, tmp_path / "out")

    expected, dim = tensors(base), 16 if kind in ("qwen3", "gemma3") else 8
    names = ("self_attn.out_proj", "fc2") if opt else ("self_attn.o_proj", "mlp.down_proj")
    stack = value.split("layers.")[0] + "layers"
    touched = {value}

    def scale(name: str, columns: slice, factor: float) -> None:
        old = expected[name][:, columns]
        expected[name][:, columns] = (old.double() * factor).to(old.dtype)
        touched.add(name)

    for (layer, head), factor in edit.heads.items():
        columns = slice(head * dim, (head + 1) * dim)
        scale(f"{stack}.{layer}.{names[0]}.weight", columns, factor)
    for (layer, neuron), factor in edit.neurons.items():
        scale(f"{stack}.{layer}.{names[1]}.weight", slice(neuron, neuron + 1), factor)
    expected[value].view(-1)[0] = 0
    expected[value].view(-1)[5] *= 1.5
    if opt:
        bias = expected["model.decoder.layers.1.fc2.bias"]
        bias.copy_(bias.double() + torch.full((32,), 0.3).double())
        touched.add("model.decoder.layers.1.fc2.bias")
    found = tensors(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert all(found[name].dtype == expected[name].dtype for name in found)
    assert set(written.tensors) == touched

    before, after = contents(base), contents(tmp_path / "out")
    assert before.keys() == {name for name in after if not name.startswith("excise-edits")}
    assert all(after[name] == before[name] for name in before if "-of-" not in name
               and not name.endswith("model.safetensors"))  # fmt: skip
    assert all(len(after[name]) == len(before[name]) for name in before)

    verified = verify_edit(tmp_path / "out", edit)
    assert verified.ok, verified
    assert verified.base == edit.base["digest"]
    revert_edit(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == before


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_stock_transformers_loads_what_was_tried(kind: str, checkpoint: Folder, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    base, auto = checkpoint(kind, "bfloat16"), AutoModelForCausalLM
    edit = bind(Edit(heads=HEADS.heads, neurons=NEURONS.neurons), base)
    apply_edit(base, edit, tmp_path / "out")
    model: Any = auto.from_pretrained(base, dtype=torch.bfloat16)
    edited: Any = auto.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    with edit.applied(model):
        state = model.state_dict()
        assert all(torch.equal(state[n], t) for n, t in edited.state_dict().items())
    if kind == "llama-gqa":
        assert edited.lm_head.weight is edited.model.embed_tokens.weight  # still tied


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_two_edits_in_either_order(kind: str, checkpoint: Folder, tmp_path: Path):
    base = checkpoint(kind, "float16-sharded")
    stack = "model.decoder.layers" if kind == "opt" else "model.layers"
    out = "fc2" if kind == "opt" else "mlp.down_proj"
    crossing = {f"{stack}.0.{out}.weight": (torch.tensor([4, 28]), torch.tensor([0.3, 0.9]))}
    one = bind(Edit(heads={(0, 1): 0.1}, neurons={(0, 4): 1 / 3}), base)
    other = bind(Edit(neurons={(0, 5): 0.7}, weights=crossing), base)  # meets neuron 4 twice
    apply_edit(base, [one, other], tmp_path / "whole")
    for name, (first, second) in {"ab": (one, other), "ba": (other, one)}.items():
        apply_edit(base, first, tmp_path / f"{name}1")
        apply_edit(tmp_path / f"{name}1", second, tmp_path / name)
        assert same(tmp_path / name, tmp_path / "whole")
        assert verify_edit(tmp_path / name, one).ok
        assert verify_edit(tmp_path / name, other).ok
        revert_edit(tmp_path / name, tmp_path / f"{name}-last")
        assert contents(tmp_path / f"{name}-last") == contents(tmp_path / f"{name}1")
        revert_edit(tmp_path / name, tmp_path / f"{name}-first", first)  # the one underneath
        apply_edit(base, second, tmp_path / f"{name}2")
        assert contents(tmp_path / f"{name}-first") == contents(tmp_path / f"{name}2")
        revert_edit(tmp_path / name, tmp_path / f"{name}-all", everything=True)
        assert contents(tmp_path / f"{name}-all") == contents(base)
    assert not same(tmp_path / "ab1", tmp_path / "ab2")


def test_in_place(checkpoint: Folder, tmp_path: Path):
    base, model = checkpoint("llama-gqa"), tmp_path / "model"
    shutil.copytree(base, model)
    edits = [bind(edit, base) for edit in (HEADS, NEURONS)]
    for edit in edits:
        with pytest.raises(ExciseError, match="exists"):
            apply_edit(model, edit, model)
        apply_edit(model, edit, model, overwrite=True)
    assert [edit.digest for edit in verify_edit(model).edits] == [edit.digest for edit in edits]
    revert_edit(model, model, edits[0].digest[:9], overwrite=True)
    assert [edit.digest for edit in verify_edit(model).edits] == [edits[1].digest]
    revert_edit(model, model, overwrite=True)
    assert contents(model) == contents(base)
    assert list(tmp_path.iterdir()) == [model]


def test_an_edit_made_on_an_edited_model_is_for_its_base(checkpoint: Folder, tmp_path: Path):
    base = checkpoint("opt")
    apply_edit(base, bind(HEADS, base), tmp_path / "one")
    edit = bind(NEURONS, tmp_path / "one", "opt")
    assert edit.digest == bind(NEURONS, base).digest
    apply_edit(base, edit, tmp_path / "other")
    assert verify_edit(tmp_path / "other", edit).ok


def refused(folder: Path, edit: Edit, tmp_path: Path) -> str:
    """Return why an edit is refused; nothing may be left behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ExciseError) as error:
        apply_edit(folder, edit, tmp_path / "never")
    assert sorted(tmp_path.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_not_the_base_is_refused(checkpoint: Folder, tmp_path: Path, changed: Any):
    base = checkpoint("llama-gqa")
    edit = bind(HEADS, base)
    first = "model.embed_tokens.weight"
    assert f"{first} differs from the base, the first of 20" in refused(
        checkpoint("llama-gqa", seed=1), edit, tmp_path
    )
    half = refused(checkpoint("llama-gqa", "bfloat16"), edit, tmp_path)
    assert first in half
    assert "stored as BF16, and as F32 in the base" in half
    assert "is not the checkpoint of edit" in refused(checkpoint("llama-mha"), edit, tmp_path)
    assert "decoder.embed" in refused(checkpoint("opt"), edit, tmp_path)
    for name in ("model.layers.1.post_attention_layernorm.weight",  # not touched by the edit
                 "model.layers.0.self_attn.o_proj.weight"):  # fmt: skip
        tuned = tmp_path / name
        shutil.copytree(base, tuned)
        changed(tuned, name)
        assert f"{name} differs from the base, the first of 1" in refused(tuned, edit, tmp_path)
    lacking = tmp_path / "lacking"
    shutil.copytree(base, lacking)
    stored = load_file(lacking / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, lacking / "model.safetensors")
    assert "1 tensors are missing" in refused(lacking, edit, tmp_path)


def test_the_same_checkpoint_in_other_files_is_the_base(checkpoint: Folder, tmp_path: Path):
    """What counts are names, dtypes, shapes and bits, not how they are spread over files."""
    edit = bind(HEADS, checkpoint("llama-gqa"))
    apply_edit(checkpoint("llama-gqa", "float32-sharded"), edit, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert verify_edit(tmp_path / "out", edit).ok


def test_names_without_the_prefix(checkpoint: Folder, tmp_path: Path):
    """Checkpoints saved from the stack alone lack `model.`: OPT's on the hub."""
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint("opt"), bare)
    stored = load_file(bare / "model.safetensors")
    stored = {name.removeprefix("model."): tensor for name, tensor in stored.items()}
    save_file(stored, bare / "model.safetensors", {"format": "pt"})
    apply_edit(bare, edit := bind(NEURONS, bare), tmp_path / "out")
    assert verify_edit(tmp_path / "out", edit).ok
    apply_edit(checkpoint("opt"), bind(NEURONS, checkpoint("opt")), tmp_path / "full")
    full, found = tensors(tmp_path / "full"), tensors(tmp_path / "out")
    assert all(torch.equal(full[f"model.{name}"], tensor) for name, tensor in found.items())


def test_twice_and_in_conflict(checkpoint: Folder, tmp_path: Path):
    base = checkpoint("opt")
    edit = bind(NEURONS, base)
    apply_edit(base, edit, tmp_path / "out")
    assert "is in" in refused(tmp_path / "out", edit, tmp_path)
    assert "already" in refused(tmp_path / "out", bind(NEURONS, base, "again"), tmp_path)
    against = bind(Edit(neurons={(0, 4): 0.0}), base)
    assert "neuron 4 of layer 0 is scaled by" in refused(tmp_path / "out", against, tmp_path)
    with pytest.raises(ExciseError, match="there twice"):
        apply_edit(base, [edit, edit], tmp_path / "never")
    agreeing = bind(Edit(neurons={(0, 4): 1 / 3, (0, 9): 0.0}), base)
    apply_edit(tmp_path / "out", agreeing, tmp_path / "more")
    revert_edit(tmp_path / "more", tmp_path / "less", agreeing)  # what both do stays
    assert same(tmp_path / "less", tmp_path / "out")


def test_files_that_hold_the_weights_again_are_left_out(checkpoint: Folder, tmp_path: Path):
    base = tmp_path / "base"
    shutil.copytree(checkpoint("llama-gqa"), base)
    old = ["pytorch_model.bin", "consolidated.safetensors", "original/consolidated.00.pth"]
    kept = ["excise.json", "notes/about.txt"]
    for name in [*old, *kept, ".git/objects/pack"]:
        (base / name).parent.mkdir(exist_ok=True, parents=True)
        (base / name).write_text(name)
    written = apply_edit(base, bind(HEADS, base), tmp_path / "out")
    assert sorted(written.left_out) == sorted(old)
    found = contents(tmp_path / "out")
    assert all(found[name] == name.encode() for name in kept)
    assert not {*old, ".git/objects/pack"} & found.keys()
    assert verify_edit(tmp_path / "out").ok


def test_folders_that_are_no_checkpoint(checkpoint: Folder, tmp_path: Path):
    base = checkpoint("llama-gqa")
    edit = bind(HEADS, base)
    edit.save_pretrained(tmp_path / "edit")
    for folder, message in ((tmp_path / "edit", "(edit): give a model"), (tmp_path, "config.json")):
        assert message in refused(folder, edit, tmp_path)
    with pytest.raises(ExciseError, match="no edits: nothing to revert"):
        revert_edit(base, tmp_path / "never")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "llama"}')
    assert "no model.safetensors" in refused(pickled, edit, tmp_path)
    for index in ("{", "{}", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}'):
        (pickled / "model.safetensors.index.json").write_text(index)
        assert "damaged" in refused(pickled, edit, tmp_path)
    (pickled / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    assert "b.safetensors is missing or damaged" in refused(pickled, edit, tmp_path)
    (pickled / "model.safetensors").write_bytes(b"\x10" * 40)
    assert "damaged" in refused(pickled, edit, tmp_path)
    int8 = {"model.layers.0.mlp.down_proj.weight": torch.zeros(32, 24, dtype=torch.int8)}
    save_file(int8, pickled / "model.safetensors")
    with pytest.raises(ExciseError, match="stored as I8"):
        apply_edit(pickled, bind(Edit(neurons={(0, 4): 0.0}), pickled), tmp_path / "never")
    (pickled / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ExciseError, match=r"'gpt2' of .* is not supported"):
        bind(HEADS, pickled)


def test_a_factor_beyond_the_dtype(checkpoint: Folder, tmp_path: Path):
    base = checkpoint("opt", "float16-sharded")
    edit = bind(Edit(neurons={(0, 0): 1e9}), base)
    assert "beyond float16" in refused(base, edit, tmp_path)


UNITS = st.tuples(st.integers(0, 1), st.integers(0, 23))


def test_in_place_loses_nothing(checkpoint: Folder, tmp_path: Path):
    base, model = checkpoint("llama-gqa"), tmp_path / "model"
    shutil.copytree(base, model)
    (tmp_path / "link").symlink_to(model)
    edit = bind(HEADS, base)
    for lost in (model / "pytorch_model.bin", model / ".git" / "objects" / "pack"):
        lost.parent.mkdir(parents=True, exist_ok=True)
        lost.write_text("the only copy")
        before = contents(tmp_path)
        for output in (model, tmp_path / "link"):
            with pytest.raises(ExciseError, match=f"holds {lost.relative_to(model)}, which"):
                apply_edit(model, edit, output, overwrite=True)
        assert contents(tmp_path) == before
        apply_edit(model, edit, tmp_path / "out")
        edit.save_pretrained(tmp_path / "edit")
        with pytest.raises(ExciseError, match="holds edit and is not overwritten"):
            apply_edit(model, edit, tmp_path / "edit", overwrite=True)
        for gone in ("out", "edit"):
            shutil.rmtree(tmp_path / gone)
        lost.unlink()
    apply_edit(model, edit, tmp_path / "link", overwrite=True)
    assert verify_edit(model, edit).ok
    revert_edit(tmp_path / "link", model, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(model) == contents(base)


def test_no_link_out_of_the_folder_is_followed(checkpoint: Folder, tmp_path: Path):
    base, model = checkpoint("llama-gqa"), tmp_path / "snapshots" / "model"
    shutil.copytree(base, model)
    edit = bind(HEADS, base)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (tmp_path / "blobs").symlink_to("private")  # as if it were the hub's cache
    (model / "notes.txt").symlink_to(tmp_path / "private" / "key")
    (model / "more.txt").symlink_to("../../blobs/key")
    before = contents(tmp_path)
    for name in ("more.txt", "notes.txt"):
        with pytest.raises(ExciseError, match=f"{name} is a link out of the folder"):
            apply_edit(model, edit, tmp_path / "out")
        (model / name).unlink()
    (model / "other.bin").symlink_to(tmp_path / "private" / "key")  # not copied in any case
    (model / "folder").symlink_to(tmp_path / "private")
    (model / "again.json").symlink_to("config.json")
    (tmp_path / "weights").mkdir()
    for file in model.glob("*.safetensors"):  # on another disk; known by their hashes
        shutil.move(file, tmp_path / "weights")
        file.symlink_to(tmp_path / "weights" / file.name)
    done = apply_edit(model, edit, tmp_path / "out")
    assert done.left_out == ("other.bin",)
    assert "folder" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out" / "again.json").read_bytes() == (base / "config.json").read_bytes()
    assert verify_edit(tmp_path / "out", edit).ok
    apply_edit(base, edit, tmp_path / "edited")
    (tmp_path / "edited" / "notes.txt").symlink_to(tmp_path / "private" / "key")
    with pytest.raises(ExciseError, match=r"notes\.txt is a link out of the folder"):
        revert_edit(tmp_path / "edited", tmp_path / "back")
    assert {name for name in before if name.startswith("private")} == {"private/key"}
    assert b"secret" not in contents(tmp_path / "out").values()


def test_a_snapshot_of_the_hubs_cache(checkpoint: Folder, tmp_path: Path):
    base, model = checkpoint("llama-gqa"), tmp_path / "models--org--x" / "snapshots" / "0a1b"
    (model.parents[1] / "blobs").mkdir(parents=True)
    model.mkdir(parents=True)
    for number, file in enumerate(base.iterdir()):
        shutil.copy(file, model.parents[1] / "blobs" / f"{number}")
        (model / file.name).symlink_to(f"../../blobs/{number}")
    edit = bind(HEADS, model)
    apply_edit(model, edit, tmp_path / "out")
    revert_edit(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(base)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


FACTORS = st.floats(-4, 4, width=32)


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["llama-gqa", "opt"]),
    shape=st.sampled_from(SHAPES),
    neurons=st.dictionaries(UNITS, FACTORS, max_size=8),
    heads=st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 3)), FACTORS, min_size=1),
)
def test_reverting_gives_the_base(
    checkpoint: Folder, kind: str, shape: str, neurons: Any, heads: Any
):
    base = checkpoint(kind, shape)
    edit = bind(Edit(heads=heads, neurons=neurons), base)
    with TemporaryDirectory() as name:
        out, back = Path(name) / "out", Path(name) / "back"
        apply_edit(base, edit, out)
        assert verify_edit(out, edit).ok
        revert_edit(out, back)
        assert contents(back) == contents(base)


def test_seconds_bytes_and_hashes_of_smollm2(smollm2: str, tmp_path: Path):
    """CPU seconds, since other processes are no property of ours."""
    base = model_folder(smollm2)
    edit = bind(Edit(neurons={(n % 30, 7 * n): 0.0 for n in range(100)}), base, smollm2)
    edit.save_pretrained(tmp_path / "edit")
    assert sum(file.stat().st_size for file in (tmp_path / "edit").iterdir()) <= 16 * 1024
    seconds, before = [time.process_time()], peak()
    apply_edit(base, edit, tmp_path / "out")
    seconds.append(time.process_time())
    assert verify_edit(tmp_path / "out", edit).ok
    seconds.append(time.process_time())
    revert_edit(tmp_path / "out", tmp_path / "out", overwrite=True)
    seconds.append(time.process_time())
    assert all(after - before <= 5 for before, after in pairwise(seconds)), seconds
    assert peak() - before < 100e6  # of 538 MB
    assert bind(edit, tmp_path / "out", smollm2).digest == edit.digest  # every tensor's SHA-256


def test_the_base_is_part_of_the_digest(checkpoint: Folder):
    edit = bind(HEADS, checkpoint("opt"))
    assert replace(edit, config={}).digest != edit.digest
