"""Where evaluation text comes from: files as documents or lines, with bad rows named."""

import json
from pathlib import Path

import pytest
from excise.core.documents import builtin_text, is_file, read_documents, read_texts
from excise.core.errors import ExciseError


KEYS = ("prompt", "clean", "text")

WIKITEXT = (
    " \n = Robert Boulter = \n \n Robert is an actor . \n = = Career = = \n He acted . \n"
    " \n = Du Fu = \n \n Du Fu was a poet of e = mc . \n"
)


def written(path: Path, *rows: object) -> str:
    path.write_text("".join(f"{json.dumps(r)}\n" for r in rows), encoding="utf-8")
    return str(path)


def test_the_builtin_text_is_there():
    assert len(builtin_text().split()) > 50_000
    assert "\n\n".join(read_documents("builtin")) == builtin_text()
    assert len(read_documents("builtin")) > 20


def test_a_text_file_is_one_document(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo ñ\n", encoding="utf-8")
    assert read_documents(str(path)) == read_documents(str(path), split=True) == ["one\n\ntwo ñ\n"]
    assert read_texts(str(path), KEYS) == ["one", "two ñ"]


def test_wikitext_is_split_at_its_titles(tmp_path: Path):
    path = tmp_path / "wiki.txt"
    path.write_text(WIKITEXT, encoding="utf-8")
    assert read_documents(str(path)) == [WIKITEXT]
    first, second = read_documents(str(path), split=True)
    assert first.startswith(" = Robert Boulter = \n")
    assert first.endswith("He acted . \n \n")  # a section is no document
    assert second == " = Du Fu = \n \n Du Fu was a poet of e = mc . \n"


def test_rows_are_documents_and_prompts(tmp_path: Path):
    rows = ({"text": "a\nb"}, {"page": "c", "id": 3}, {"text": "d\u2028e\x85f"})
    path = Path(written(tmp_path / "rows.jsonl", *rows))
    plain = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "plain.jsonl").write_text(plain, encoding="utf-8")
    assert read_documents(str(path)) == ["a\nb", "c", "d\u2028e\x85f"]
    assert read_documents(str(tmp_path / "plain.jsonl")) == read_documents(str(path))
    prompts = ({"prompt": {"text": "a", "toxicity": 0.3}}, {"clean": " b ", "answer": "x"})
    assert read_texts(written(tmp_path / "p.jsonl", *prompts), KEYS) == ["a", " b "]


@pytest.mark.parametrize("row", ['{"text": 3}', '{"text": " "}', '{"other": "a"}', "[1]", "{"])
def test_bad_rows_are_named_by_their_line(tmp_path: Path, row: str):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a"}}\n\n{row}\n', encoding="utf-8")
    for read in (read_documents, lambda source: read_texts(source, ("text",))):
        with pytest.raises(ExciseError, match=r"rows\.jsonl, line 3"):
            read(str(path))


def test_a_prompt_object_needs_a_text(tmp_path: Path):
    source = written(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": {"toxicity": 1}})
    with pytest.raises(ExciseError, match="line 2: a row needs"):
        read_texts(source, KEYS)


def test_missing_and_empty_files(tmp_path: Path):
    (tmp_path / "empty.txt").write_text(" \n")
    for read in (read_documents, lambda source: read_texts(source, KEYS)):
        with pytest.raises(ExciseError, match="no file at"):
            read(str(tmp_path / "none.jsonl"))
        with pytest.raises(ExciseError, match="is empty"):
            read(str(tmp_path / "empty.txt"))


def test_what_is_meant_as_a_file(tmp_path: Path):
    (tmp_path / "plain").write_text("a")
    assert is_file(str(tmp_path / "plain"))
    assert is_file("none.csv")
    assert not is_file("user/dataset")
    assert not is_file(str(tmp_path))


def test_a_folder_is_a_dataset(tmp_path: Path):
    written(tmp_path / "train.jsonl", *({"text": text} for text in ("a", " ", "b", "c")))
    assert read_documents(str(tmp_path)) == read_texts(str(tmp_path), KEYS) == ["a", "b", "c"]
    assert read_documents(str(tmp_path), limit=3) == ["a", "b"]
