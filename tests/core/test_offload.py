"""Weights in files: the same model, the same bytes when it is saved, nothing left behind."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from excise.core import offload
from excise.core.errors import ExciseError
from excise.core.loading import LoadOptions, load_model
from excise.core.memory import on_disk
from filelock import FileLock


KINDS = ("llama-gqa", "llama-untied", "llama-bias", "mistral", "qwen3", "gemma3", "opt", "opt-350m")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_same_model(kind: str, dtype: str, tiny_folder: Callable[[str], Path], tmp_path: Path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    name, options = str(tiny_folder(kind)), LoadOptions(dtype=dtype, device="cpu")
    plain, mapped = load_model(name, options), load_model(name, options, scratch)
    assert not any(scratch.iterdir())  # the files have no names
    assert on_disk(plain.model) == 0
    assert on_disk(mapped.model) == sum(p.nbytes for p in mapped.model.parameters())
    expected = dict(plain.model.named_parameters())
    for path, parameter in mapped.model.named_parameters():  # tied ones count once
        other = expected.pop(path)
        assert torch.equal(parameter, other), path
        assert parameter.dtype == other.dtype
        assert parameter.requires_grad == other.requires_grad
    assert not expected
    for (path, buffer), other in zip(
        mapped.model.named_buffers(), plain.model.buffers(), strict=True
    ):
        assert torch.equal(buffer, other), path
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(mapped.model(ids).logits, plain.model(ids).logits)
    for loaded, folder in ((plain, "a"), (mapped, "b")):
        loaded.model.save_pretrained(tmp_path / folder)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_changes_stay_in_the_file(tmp_path: Path):
    dense = torch.randn(7, 3).T
    tensor = offload.on_disk(dense, tmp_path / "weight")
    assert torch.equal(tensor, dense)
    again = offload.on_disk(torch.zeros(4), tmp_path / "weight")  # its name is free again
    tensor.mul_(2)
    again += 1
    assert torch.equal(tensor, 2 * dense)
    assert again.tolist() == [1, 1, 1, 1]
    assert offload.on_disk(torch.zeros(0, 3), tmp_path / "weight").shape == (0, 3)
    assert not any(tmp_path.iterdir())


def test_shards(tiny: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path):
    model = tiny("llama-untied")
    for part in (model, tiny_tokenizer):
        part.save_pretrained(tmp_path, **({"max_shard_size": "10KB"} if part is model else {}))
    mapped = load_model(str(tmp_path), offload=tmp_path).model
    for one, other in zip(mapped.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_left_behind(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """After a full disk, an interrupt, a damaged file; and what a killed run left goes, too."""
    dead, alive = (f".excise-scratch.{name}.excise.part" for name in ("dead", "alive"))
    lock = FileLock(tmp_path / ".excise-scratch.alive.excise.lock")  # of whoever works there
    lock.acquire()
    for name in (dead, alive):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weight").write_bytes(b"0")
    name = str(tiny_folder("opt"))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for raised, seen, said in (
        (full, ExciseError, "cannot be written: No space left"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ):

        def fail(_tensor: Any, path: Path, raised: BaseException = raised) -> None:
            path.write_bytes(b"half")
            raise raised

        with monkeypatch.context() as patch:
            patch.setattr(offload, "on_disk", fail)
            with pytest.raises(seen, match=said):
                load_model(name, offload=tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {alive, Path(lock.lock_file).name}
    broken = tmp_path / "broken"
    shutil.copytree(name, broken)
    os.truncate(broken / "model.safetensors", 1000)
    with pytest.raises(ExciseError, match="damaged"):
        load_model(str(broken), offload=tmp_path)
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)
    assert {path.name for path in tmp_path.iterdir()} == {alive, "broken"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda:0"}, "leave --device out"),
        ({"device_map": "auto"}, "leave --device-map out"),
        ({"load_in_4bit": True}, "leave --load-in-4bit out"),
        ({"allow_pickle": True}, "leave --allow-pickle out"),
    ],
)
def test_files_are_for_the_cpu(
    options: dict[str, Any], said: str, tiny_folder: Callable[[str], Path], tmp_path: Path
):
    with pytest.raises(ExciseError, match=said):
        load_model(str(tiny_folder("opt")), LoadOptions(**options), tmp_path)


def test_a_folder_that_is_not_there(tiny_folder: Callable[[str], Path], tmp_path: Path):
    with pytest.raises(ExciseError, match=r"no folder at .*: give one on a disk with room"):
        load_model(str(tiny_folder("opt")), offload=tmp_path / "none")
