"""What is written is JSON for everybody: no NaN, no Infinity."""

import ast
import json
import math
from pathlib import Path

import pytest
from excise.core.files.json_text import finite, json_text


ROOT = Path(__file__).parents[3]
OWN = {
    "core/files/json_text.py", "core/files/progress.py", "core/files/reading.py", "core/data.py",
    "core/identity.py",
    "edits/seal.py", "eval/store.py", "eval/zero_shot.py", "prune/progress.py",
    "viz/circuit/pack.py",
}  # fmt: skip
"""Files that hash JSON, keep rows for themselves, or refuse what is no number."""


def test_numbers_that_are_none_are_null():
    value = {"a": [1.0, math.inf, (math.nan, "x")], "b": {"c": -math.inf, "d": None, "e": True}}
    expected = {"a": [1.0, None, [None, "x"]], "b": {"c": None, "d": None, "e": True}}
    assert finite(value) == expected
    assert json.loads(json_text(value, indent=2)) == expected
    with pytest.raises(TypeError):
        json_text({1j: 2})


def test_all_outputs_go_through_one_place():
    callers = set()
    for path in ROOT.glob("*/**/*.py"):
        room = path.relative_to(ROOT).parts[0]
        if room in ("tests", "benchmarks", "examples", "build") or room.startswith("."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("dumps", "dump"):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id == "json":
                    callers.add(str(path.relative_to(ROOT)))
    assert callers <= OWN
