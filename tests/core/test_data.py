"""Prompts, tokens and padding."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from excise.core.data import (
    Prompt,
    Sample,
    batches,
    check_length,
    collate,
    dataset_text,
    encode_continuations,
    encode_prompts,
    encode_texts,
    fingerprint,
    read_prompts,
    single_token,
)
from excise.core.errors import ExciseError
from excise.core.files.reading import read_text
from hypothesis import given
from hypothesis import strategies as st


tokens = st.lists(st.integers(0, 99), min_size=1, max_size=7).map(tuple)
samples = st.builds(lambda ids, share: Sample(ids, continuation=int(share * len(ids))),
                    tokens, st.floats(0, 1))  # fmt: skip
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(st.lists(samples, min_size=1, max_size=5), st.sampled_from(["left", "right"]))
def test_collate_can_be_undone(rows: list[Sample], side: Literal["left", "right"]):
    batch = collate(rows, side)
    assert batch.input_ids.shape == batch.attention_mask.shape
    assert batch.input_ids.shape[1] == max(len(row.input_ids) for row in rows)
    for i, row in enumerate(rows):
        mask = batch.attention_mask[i].bool()
        assert tuple(batch.input_ids[i][mask].tolist()) == row.input_ids
        first, last = int(batch.first[i]), int(batch.last[i])
        assert (first, last) == (int(mask.nonzero()[0]), int(mask.nonzero()[-1]))
        assert last - first + 1 == len(row.input_ids)
        assert (first == 0) if side == "right" else (last == batch.input_ids.shape[1] - 1)
        if batch.continuation is not None:
            where = batch.continuation[i].nonzero()[:, 0].tolist()
            assert where == list(range(last + 1 - row.continuation, last + 1))
        else:
            assert row.continuation == 0


@given(st.lists(tokens, max_size=9), st.integers(1, 4))
def test_batches_keep_order_and_lose_nothing(ids: list[tuple[int, ...]], size: int):
    found = list(batches([Sample(row) for row in ids], size))
    assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)
    rows = [
        tuple(row[mask.bool()].tolist())
        for batch in found
        for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    assert rows == ids


def test_answers_are_kept_if_all_samples_have_one():
    with_answer, without = Sample((1, 2), answer=3, wrong=4), Sample((1,), answer=5)
    batch = collate([with_answer, without])
    assert batch.answers is not None
    assert batch.answers.tolist() == [3, 5]
    assert batch.wrongs is None
    assert batch.to("cpu").answers is not batch.input_ids


def test_positions_are_explicit_only_where_they_must_be():
    rows = [Sample((5, 6)), Sample((7, 8, 9))]
    inputs = collate(rows, "left").model_inputs(explicit_positions=True)
    assert isinstance(inputs["position_ids"], torch.Tensor)
    assert inputs["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert "position_ids" not in collate(rows).model_inputs(explicit_positions=False)
    assert collate(rows[:1]).model_inputs(True).keys() == {"input_ids", "use_cache"}


@given(st.lists(st.builds(Prompt, words, words | st.none(), words | st.none()), min_size=1))
def test_prompts_survive_the_file(tmp_path_factory: pytest.TempPathFactory, rows: list[Prompt]):
    path = tmp_path_factory.getbasetemp() / "prompts.jsonl"
    path.write_text("\n\n".join(json.dumps(vars(row)) for row in rows), encoding="utf-8")
    assert read_prompts(path) == rows


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"clean": ', "line 3 is no JSON"),
        ("[1]", "line 3: a row needs"),
        ('{"answer": "a"}', "line 3: a row needs"),
        ('{"clean": ""}', "line 3: a row needs"),
        ('{"clean": "a", "wrong": ["b"]}', "line 3: 'wrong' is"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, line: str, named: str):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"clean": "a"}\n\n' + line)
    with pytest.raises(ExciseError, match=named):
        read_prompts(path)


def test_no_text(tmp_path: Path):
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "latin").write_bytes("Größe".encode("latin-1"))
    for name, words in (("blank", "empty"), ("latin", "UTF-8"), ("", "no file"), ("no", "no file")):
        with pytest.raises(ExciseError, match=words):
            read_text(tmp_path / name)


def test_an_answer_is_one_token_behind_a_space(tiny_tokenizer: Any):
    mary = tiny_tokenizer.convert_tokens_to_ids("Mary")
    assert single_token(tiny_tokenizer, "Mary") == single_token(tiny_tokenizer, " Mary") == mary
    assert single_token(tiny_tokenizer, None) is None
    with pytest.raises(ExciseError, match=r"'Mary John' is 2 tokens \['Mary', 'John'\]"):
        single_token(tiny_tokenizer, "Mary John")
    with pytest.raises(ExciseError, match="'zebra' is unknown"):
        single_token(tiny_tokenizer, "zebra")


def test_prompts_and_continuations(tiny_tokenizer: Any):
    prompt = Prompt("Then Mary gave", answer="the book", wrong="the key")
    (sample,) = encode_continuations(tiny_tokenizer, [prompt])
    whole = tiny_tokenizer("Then Mary gave the book")["input_ids"]
    assert sample == Sample(tuple(whole), continuation=2)
    (sample,) = encode_prompts(tiny_tokenizer, [Prompt("Then Mary gave", answer="John")])
    assert sample.input_ids == tuple(whole[:-2])
    with pytest.raises(ExciseError, match="at least one"):
        encode_prompts(tiny_tokenizer, [])
    with pytest.raises(ExciseError, match="'Then Mary' has no 'answer'"):
        encode_continuations(tiny_tokenizer, [Prompt("Then Mary")])


@given(st.integers(1, 9), st.integers(2, 9), st.integers(1, 60))
def test_texts_are_cut_without_overlap(tiny_tokenizer: Any, n: int, length: int, size: int):
    text = " ".join(["Mary", "John", "gave", "the"][i % 4] for i in range(size))
    ids = tiny_tokenizer(text)["input_ids"]
    if len(ids) < length:
        with pytest.raises(ExciseError, match=f"has {len(ids)} tokens"):
            encode_texts(tiny_tokenizer, [text], n, length)
        return
    found = encode_texts(tiny_tokenizer, [text], n, length)
    assert len(found) == min(n, len(ids) // length)
    pieces = [tuple(ids[i : i + length]) for i in range(0, len(ids), length)]
    iterator = iter(pieces)
    assert all(sample.input_ids in iterator for sample in found)  # in order, each at most once


@pytest.mark.parametrize(("n", "length"), [(0, 8), (1, 1), (-1, 8)])
def test_too_little_is_refused(tiny_tokenizer: Any, n: int, length: int):
    with pytest.raises(ExciseError, match=f"samples={n}, length={length}"):
        encode_texts(tiny_tokenizer, ["Mary gave the book"], n, length)


def test_too_long_is_refused(tiny_llama: Any):
    most = tiny_llama.config.max_position_embeddings
    check_length([Sample((1,) * most)], tiny_llama.config)
    with pytest.raises(ExciseError, match=f"{most + 1} tokens"):
        check_length([Sample((1,)), Sample((1,) * (most + 1))], tiny_llama.config)


@given(st.lists(samples, max_size=3), st.lists(samples, max_size=3))
def test_fingerprints_tell_data_apart(a: list[Sample], b: list[Sample]):
    assert (fingerprint(a) == fingerprint(b)) == (a == b)


def test_answers_of_a_tokenizer_that_puts_a_blank_before_all_text():
    """As those of Llama 2 and Mistral: " Mary" alone is two tokens, behind a word it is one."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "▁", *(f"▁{word}" for word in ("the", "Mary", "John", "gave", "to"))]
    scores = [(piece, 0.0 if i < 2 else -1.0) for i, piece in enumerate(pieces)]
    core = Tokenizer(models.Unigram(scores, unk_id=0))
    core.normalizer = normalizers.Prepend("▁")
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert len(tokenizer(" Mary")["input_ids"]) == 2  # the trap
    (sample,) = encode_prompts(tokenizer, [Prompt("John gave to", answer="Mary", wrong="John")])
    assert (sample.answer, sample.wrong) == (pieces.index("▁Mary"), pieces.index("▁John"))


ROWS = {
    "text": ([{"id": "1", "text": "One."}, {"id": "2", "text": ""}], ["One.", ""]),
    "prompt": ([{"file": "x", "prompt": {"text": "So", "toxicity": 0.1}}], ["So"]),  # as in RTP
    "other": ([{"n": 3, "page": "A page."}], ["A page."]),
}


@pytest.mark.parametrize("name", ROWS)
def test_texts_of_a_dataset(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows, expected = ROWS[name]
    (tmp_path / "data").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "train.jsonl").write_text(lines)
    assert dataset_text(str(tmp_path / "data"), keys=("prompt", "text")) == expected


def test_a_line_of_a_prompts_file_may_hold_any_character(tmp_path: Path):
    row = json.dumps({"clean": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_text(row + "\n", encoding="utf-8")
    assert [prompt.clean for prompt in read_prompts(tmp_path / "p.jsonl")] == [
        "one\u2028two\x85three"
    ]


def test_unknown_keys_are_named(tmp_path: Path):
    (tmp_path / "p.jsonl").write_text('{"clean": "a"}\n{"clean": "a", "anwser": "b"}\n')
    with pytest.raises(ExciseError, match=r"line 2: unknown key 'anwser': did you mean 'answer'"):
        read_prompts(tmp_path / "p.jsonl")
