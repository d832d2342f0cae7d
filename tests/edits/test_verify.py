"""Verification: what is not the base with its edits is found, by the tensor or by the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.edits.apply import apply_edit, bind, revert_edit
from excise.edits.edit import Edit
from excise.edits.verify import verify_edit


Folder = Callable[..., Path]
ADDED = ["excise-edits", "excise-edits.json"]

HEADS, NEURONS = Edit(heads={(0, 1): 0.0, (1, 3): -0.7}), Edit(neurons={(0, 4): 1 / 3, (1, 0): 0})


def test_what_verify_finds(checkpoint: Folder, tmp_path: Path, changed: Any):
    base, out = checkpoint("llama-gqa", "float32-sharded"), tmp_path / "out"
    edit, other = bind(HEADS, base), bind(NEURONS, base)
    apply_edit(base, edit, out)
    assert verify_edit(out).ok
    assert "is not in it" in str(verify_edit(out, other))
    assert "base" in str(found := verify_edit(base, edit))
    assert "itself, without edit" in str(found)
    with pytest.raises(ExciseError, match="give the edit"):
        verify_edit(base)

    norm, scaled = "model.norm.weight", "model.layers.0.self_attn.o_proj.weight"
    for name, at, what in (
        (norm, 0, "differs from the base"),
        (scaled, 0, "differs from the base"),  # an entry of head 0, which is not edited
        (scaled, 9, "is not what the edits make of the base"),  # one of head 1, which is
    ):
        copy = tmp_path / f"{name}{at}"
        shutil.copytree(out, copy)
        changed(copy, name, at=at)
        assert verify_edit(copy, edit).differing == {name: what}
        assert not verify_edit(copy).ok
        for verb in (lambda to, copy=copy: revert_edit(copy, to),
                     lambda to, copy=copy: apply_edit(copy, other, to)):  # fmt: skip
            with pytest.raises(ExciseError, match=f"no longer its base.*{name}"):
                verb(tmp_path / "never")
    for file in ADDED:
        path = out / file
        (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    lost = verify_edit(out, edit)
    assert not lost.ok
    assert "no record of any edit" in str(lost)
    assert scaled in lost.differing


def test_a_record_that_lies(checkpoint: Folder, tmp_path: Path):
    base, out = checkpoint("opt"), tmp_path / "out"
    one, other = bind(HEADS, base), bind(NEURONS, base)
    apply_edit(base, one, out)
    record, undo = out / "excise-edits.json", out / "excise-edits" / "undo.safetensors"
    text, values = record.read_text(), undo.read_bytes()
    parsed = json.loads(text)
    part = out / "excise-edits" / one.digest[:12]

    def fails(message: str) -> None:
        for verb in (lambda: verify_edit(out), lambda: revert_edit(out, tmp_path / "never"),
                     lambda: apply_edit(out, other, tmp_path / "never")):  # fmt: skip
            with pytest.raises(ExciseError, match=message):
                verb()
        record.write_text(text)
        undo.write_bytes(values)

    for wrong in ("", "[]", "{}", "null", json.dumps({**parsed, "edits": []}),
                  json.dumps({**parsed, "edits": [1]}), json.dumps({**parsed, "base": "0" * 64}),
                  json.dumps({**parsed, "edits": None}),
                  json.dumps({**parsed, "undo": "0" * 64})):  # fmt: skip
        record.write_text(wrong)
        fails("damaged")
    record.write_text(json.dumps({**parsed, "schema": 2}))
    fails("schema 2")
    record.write_text(json.dumps({**parsed, "edits": [one.digest[:-1] + "x"]}))
    fails("damaged")
    for wrong in (values[:-3], b"", values[:-1] + bytes([values[-1] ^ 1])):
        undo.write_bytes(wrong)
        fails("damaged")
    other.save_pretrained(part, overwrite=True)
    fails("damaged")
