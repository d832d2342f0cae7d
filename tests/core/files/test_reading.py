"""Files of others: whatever is in them, a value or one error that names file, line and way out."""

import json
from pathlib import Path
from typing import Any

import pytest
from excise.core.data import read_prompts
from excise.core.documents import read_texts
from excise.core.errors import ExciseError, shown
from excise.core.files.artefact import read_config
from excise.core.files.plain_yaml import parse_yaml
from excise.core.files.reading import as_path, parse_json, read_text, shard_names, tsv_rows


DEEP = '{"clean": ' + "[" * 100_000
BAD = {
    "deep": (DEEP, "nested too deeply"),
    "deep but whole": ('{"clean": ' + "[" * 900 + "]" * 900 + "}", "nested too deeply"),
    "digits": ('{"clean": ' + "9" * 5000 + "}", "5000 digits"),
    "half": ('{"clean": "Mary \\ud800 gave"}', "half a character"),
    "half a key": ('{"\\udfff": 1}', "half a character"),
    "cut": ('{"clean": "Mar', "no JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_of_json(tmp_path: Path, name: str):
    text, said = BAD[name]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"clean": "Mary"}\n' + text + "\n")
    for read in (read_prompts, lambda source: read_texts(str(source))):
        with pytest.raises(ExciseError, match=said) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}, line 2")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [*(text for text, _ in BAD.values()), "[]", "7", ""])
def test_a_config(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ExciseError, match=r"no readable config\.json"):
        read_config(tmp_path)


def test_what_json_allows_is_read():
    assert parse_json('{"a": "\\ud83d\\ude00", "b": [1e999]}', "x")["a"] == "\N{GRINNING FACE}"
    assert parse_json(b"[" * 60 + b"]" * 60, "x")
    with pytest.raises(ExciseError, match="no JSON"):
        parse_json(b'"\xff"', "x")


@pytest.mark.parametrize("name", ["", "a" * 300, "a\0b", "bad\udcff", "x/" * 3000])
def test_names_that_no_file_can_have(name: str):
    for read in (as_path, read_text, read_config, read_prompts):
        with pytest.raises(ExciseError, match=r"(no name of a file|too long for a file)") as caught:
            read(name)
        assert len(str(caught.value)) < 300


def test_long_cells():
    with pytest.raises(ExciseError, match=r"pairs\.tsv, line 2"):
        list(tsv_rows(f"a\tb\nc\t{'x' * 200_000}\n", "pairs.tsv"))


@pytest.mark.parametrize(
    "found", [[], {}, {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../b"}}]
)
def test_an_index(tmp_path: Path, found: Any):
    (tmp_path / "index.json").write_text(json.dumps(found))
    with pytest.raises(ExciseError, match=r"index\.json"):
        shard_names(tmp_path / "index.json")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"), ("1_0", "1_0"), ("010", 10), ("0o10", 8), ("0x1F", 31), ("no", "no"),
        ("true", True), ("~", None), ("1e3", 1000.0), (".5", 0.5), ("2020-01-01", "2020-01-01"),
        ("{a: [1, '2']}", {"a": [1, "2"]}), ("<<: 1", {"<<": 1}),
    ],
)  # fmt: skip
def test_yaml_is_read_by_its_core_rules(text: str, value: Any):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["a: &x 1\nb: *x", "a: 1\na: 2", "!!python/name:os.system", "[" * 5000, "? [a]\n: 1",
     "9" * 5000, "!!int x", "!!timestamp x", "!!binary x", "\0", "a: b: c"],
)  # fmt: skip
def test_yaml_that_is_refused(text: str):
    with pytest.raises(ExciseError) as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_values_in_messages_are_short():
    bomb: Any = "x" * 10**6
    for _ in range(50):
        bomb = [bomb] * 9
    assert len(shown(bomb)) < 1000
    assert shown("x" * 10**6).count("x") <= 80
