"""Behaviour sets: reading, choosing a model's own bad continuations, splits, and confounds."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from excise.core.data import Sample
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.core.texts import near
from excise.correction.data.behaviour import (
    BehaviourSet,
    check_sets,
    encode,
    read_behaviour,
)
from excise.correction.data.material import divided, from_examples
from excise.correction.data.recipes import likelihood_target
from excise.correction.data.splits import SHARES, part_of, split
from excise.tasks.ioi import ioi_prompts
from hypothesis import given
from hypothesis import strategies as st


def texts(sample: Sample, tokenizer: Any) -> tuple[str, str]:
    """Decode the prompt and the continuation."""
    cut = len(sample.input_ids) - sample.continuation
    ids = sample.input_ids
    return tokenizer.decode(ids[1:cut]), tokenizer.decode(ids[cut:])


def samples(
    n: int, length: int, seed: int, tokens: tuple[int, int] = (3, 90)
) -> tuple[Sample, ...]:
    draw = random.Random(seed)
    return tuple(
        Sample(tuple(draw.randrange(*tokens) for _ in range(length)), continuation=length - 1)
        for _ in range(n)
    )


def test_lines_of_text_are_continuations_and_general_text_is_cut_to_their_length(
    tiny_tokenizer: Any, tmp_path: Path
):
    (tmp_path / "bad.txt").write_text("the cat sat\n\non the mat\n")
    (tmp_path / "plain.txt").write_text("then it was not there ! one two three " * 5)
    found = read_behaviour(tiny_tokenizer, tmp_path / "bad.txt", tmp_path / "plain.txt")
    assert (found.name, found.paired, found.kept) == ("bad", False, ())
    assert [texts(s, tiny_tokenizer) for s in found.undesired] == [
        ("", "the cat sat"),
        ("", "on the mat"),
    ]
    assert {len(s.input_ids) for s in found.general} == {4}
    assert {s.continuation for s in found.general} == {3}


def test_prompts_are_not_explained(tiny_tokenizer: Any, tmp_path: Path):
    rows = [{"prompt": "the cat", "continuation": "sat on"}, {"continuation": "mat was"}]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "good.jsonl").write_text(json.dumps({"prompt": "and", "continuation": " then it"}))
    found = read_behaviour(tiny_tokenizer, tmp_path / "bad.jsonl", tmp_path / "good.jsonl", "x")
    assert [texts(s, tiny_tokenizer) for s in found.undesired] == [
        ("the cat", "sat on"),
        ("", "mat was"),
    ]
    assert texts(found.general[0], tiny_tokenizer) == ("and", "then it")


def test_pairs_keep_their_order_and_the_general_file_is_what_is_kept(
    tiny_tokenizer: Any, tmp_path: Path
):
    (tmp_path / "pairs.tsv").write_text(
        'toxic\tneutral1\tneutral2\nthe cat sat\tthe cat was\t\n"one\ntwo"\tthree one\tx\n'
    )
    (tmp_path / "plain.txt").write_text("then it was not there ! " * 5)
    found = read_behaviour(tiny_tokenizer, tmp_path / "pairs.tsv", tmp_path / "plain.txt")
    assert found.paired
    assert [texts(s, tiny_tokenizer)[1] for s in found.undesired] == ["the cat sat", "one two"]
    assert [texts(s, tiny_tokenizer)[1] for s in found.general] == ["the cat was", "three one"]
    assert found.kept
    assert found.reference == found.kept
    alone = read_behaviour(tiny_tokenizer, tmp_path / "pairs.tsv")
    assert alone.reference == alone.general
    rows = [{"prompt": "and", "undesired": "then it", "neutral": "was not"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_behaviour(tiny_tokenizer, tmp_path / "pairs.jsonl", limit=1)
    assert texts(found.undesired[0], tiny_tokenizer) == ("and", "then it")
    assert texts(found.general[0], tiny_tokenizer) == ("and", "was not")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "the cat\n", "give a file of general text"),
        ("a.tsv", "the cat\n", "line 1: needs two texts"),
        ("a.tsv", "toxic\tneutral\n", "holds no examples"),
        ("a.jsonl", "{", "line 1 is no JSON"),
        ("a.jsonl", '{"prompt": "the"}', "line 1: a row needs"),
        ("a.jsonl", '{"continuation": 3}', "line 1: a row needs"),
        ("a.jsonl", '{"continuation": "it"}\n{"undesired": "it", "neutral": "not"}', "mixes"),
        ("a.jsonl", '{"undesired": "it", "neutral": ""}', "line 1: a row needs"),
    ],
)
def test_files_that_are_not_as_they_should_be(
    tiny_tokenizer: Any, tmp_path: Path, name: str, content: str, said: str
):
    (tmp_path / name).write_text(content)
    with pytest.raises(ExciseError, match=said):
        read_behaviour(tiny_tokenizer, tmp_path / name)


def test_examples_with_nothing_to_explain_are_left_out_and_counted(
    tiny_tokenizer: Any, tmp_path: Path
):
    rows = [{"prompt": "the cat", "undesired": "sat", "neutral": " "},
            {"prompt": "and", "undesired": "then it", "neutral": "was not"}]  # fmt: skip
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    found = read_behaviour(tiny_tokenizer, file)
    assert [texts(s, tiny_tokenizer) for s in found.undesired] == [("and", "then it")]
    assert found.left_out == 1
    assert any("1 examples with no token" in warning for warning in check_sets(found))
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(ExciseError, match="no example with a token to explain"):
        read_behaviour(tiny_tokenizer, file)


def test_continuations_are_cut_and_empty_ones_refused(tiny_tokenizer: Any):
    found = encode(tiny_tokenizer, "the cat", "sat on mat", length=2)
    assert texts(found, tiny_tokenizer) == ("the cat", "sat on")
    with pytest.raises(ExciseError, match="no token to explain"):
        encode(tiny_tokenizer, "the cat", " ")


@pytest.mark.parametrize(
    ("undesired", "general", "paired", "said"),
    [
        ((), samples(1, 3, 0), False, "at least one of each"),
        (samples(2, 3, 0), samples(1, 3, 0), True, "as many of each"),
        ((Sample((1, 2)),), samples(1, 3, 0), False, "explains 0 of 2"),
        ((Sample((1, 2), continuation=2),), samples(1, 3, 0), False, "explains 2 of 2"),
    ],
)
def test_sets_that_cannot_be_contrasted(undesired: Any, general: Any, paired: bool, said: str):
    with pytest.raises(ExciseError, match=said):
        BehaviourSet("x", undesired, general, paired)


def test_good_sets_have_no_warnings():
    assert check_sets(BehaviourSet("x", samples(200, 9, 0), samples(200, 9, 1), False)) == []


@pytest.mark.parametrize(
    ("undesired", "general", "word"),
    [
        (samples(5, 9, 0), samples(60, 9, 1), "too few"),
        (samples(60, 12, 0), samples(60, 9, 1), "length"),
        (samples(60, 9, 0), (*samples(60, 9, 1), samples(60, 9, 0)[3]), "overlap"),
        ((*samples(60, 9, 0), samples(60, 9, 0)[3]), samples(60, 9, 1), "more than once"),
        (samples(60, 9, 0, (3, 30)), samples(60, 9, 1, (30, 60)), "token frequency"),
    ],
)
def test_confounds_are_named(undesired: Any, general: Any, word: str):
    warnings = check_sets(BehaviourSet("x", undesired, general, False))
    assert any(word in warning for warning in warnings)
    assert all(";" in warning for warning in warnings)  # what to do


@given(st.text(min_size=1))
def test_a_text_has_one_part_whatever_its_case_and_space(text: str):
    spaced = "  " + "\n".join(text.split()) + " "
    assert part_of(spaced) == part_of(text)


def test_parts_have_their_shares_and_depend_on_the_salt():
    rows = [(str(i), i) for i in range(4000)]
    parts = split(rows, lambda row: row[0])
    assert sorted(row for part in parts.values() for row in part) == sorted(rows)
    for name, share in SHARES.items():
        assert len(parts[name]) / len(rows) == pytest.approx(share, abs=0.03)
        assert all(part_of(text) == name for text, _ in parts[name])
    moved = Counter(part_of(text) != part_of(text, "another") for text, _ in rows)
    assert moved[True] > len(rows) / 2


# --- parts ---


def files_of(tmp_path: Path, lines: list[str], general: list[str]) -> tuple[Path, Path]:
    for name, rows in (("bad.txt", lines), ("general.txt", general)):
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    return tmp_path / "bad.txt", tmp_path / "general.txt"


def test_examples_that_begin_alike_are_divided_as_whole_texts(
    tiny: Any, tiny_tokenizer: Any, tmp_path: Path
):
    """60 lines of one beginning, which is all that two text files have, are enough."""
    words = [p.clean for p in ioi_prompts(tiny_tokenizer, 60)]
    lines = [f"the cat sat on the mat and then it was not there {text}" for text in words]
    general = [p.clean for p in ioi_prompts(tiny_tokenizer, 60, split="validation")]
    bad, plain = files_of(tmp_path, lines, general)
    plain_text = "\n".join(p.clean for p in ioi_prompts(tiny_tokenizer, 60, split="test"))
    texts, loaded = divided([plain_text], None), Loaded(tiny("opt"), tiny_tokenizer, "opt")
    found = from_examples(loaded, bad, plain, texts, None, None, 100)
    sizes = {name: len(part) for name, part in vars(found.parts).items()}
    for name, share in SHARES.items():
        assert sizes[name] >= 0.5 * share * 60, sizes
    measured = set(found.target.metric(found.parts.test).plan(loaded).units)
    assert not near(measured, found.seen)
    judged: Any = lambda name: replace(likelihood_target(name))  # noqa: E731
    with pytest.raises(ExciseError, match=r"60 examples \(60 different, \d+ different beginnings"):
        from_examples(loaded, bad, plain, texts, judged, None, 100)  # beginnings are completed


def test_too_few_examples_are_counted_as_they_are(tiny: Any, tiny_tokenizer: Any, tmp_path: Path):
    lines = ["the cat sat on the mat and then it was not there"] * 58 + ["one two three", "a book"]
    bad, plain = files_of(tmp_path, lines, [p.clean for p in ioi_prompts(tiny_tokenizer, 60)])
    plain_text = "\n".join(p.clean for p in ioi_prompts(tiny_tokenizer, 60, split="test"))
    texts, loaded = divided([plain_text], None), Loaded(tiny("opt"), tiny_tokenizer, "opt")
    with pytest.raises(ExciseError, match=r"60 examples \(3 different, 3 different beginnings\)"):
        from_examples(loaded, bad, plain, texts, None, None, 100)


@given(st.integers(0, 2**32))
def test_near_duplicates_share_a_part(seed: int):
    draw = random.Random(seed)
    texts = [" ".join(draw.sample([f"w{i}" for i in range(500)], 9)) for _ in range(60)]
    doubles = [
        draw.choice([f"{t}.", t.upper(), f"{t} more", f"so {t}", f"{t[:4]}\u200b{t[4:]}"])
        for t in texts
    ]
    rows = [*texts, *doubles]
    draw.shuffle(rows)
    part = {row: name for name, found in split(rows, key=str).items() for row in found}
    assert all(part[text] == part[double] for text, double in zip(texts, doubles, strict=True))


def test_texts_without_near_duplicates_stay_where_they_always_were():
    """What was measured rests on the parts, so that these are the digests of the first release."""
    texts = [f"sentence number {i} speaks of {i * i} other things, {i % 7}" for i in range(400)]
    found = {name: len(rows) for name, rows in split(texts, key=str).items()}
    assert found == {name: sum(part_of(t) == name for t in texts) for name in SHARES}
    assert [part_of(text) for text in ("the cat sat", "a book", "one two three", "x y")] == [
        "test", "test", "attribution", "selection"
    ]  # fmt: skip
