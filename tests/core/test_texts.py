"""How texts are known again: what folds away, what is near, and what must stay apart."""

import random
import string
import time
from collections import Counter
from typing import Any

import pytest
from excise.core.texts import DIGITS, WORDS, Lines, folded, groups, line_hashes, near, text_hash
from excise.tasks.registry import TASKS, task_prompts
from hypothesis import given
from hypothesis import strategies as st


BASE = "When Mary's friend went to the store, John gave a drink to"


@pytest.mark.parametrize(
    "same",
    [
        BASE + ".",
        BASE.replace("'", "\u2019"),
        BASE.replace("store", "st\u200bore"),
        BASE.replace("drink", "dr\u00adink"),
        BASE.upper(),
        BASE.replace(" ", "\u00a0\u3000"),
        BASE.replace("fi", "\ufb01"),  # one character for two
        "".join(chr(ord(c) + 0xFEE0) if c in string.ascii_letters else c for c in BASE),  # wide
        f"\u201c{BASE} \u2026\u201d",
    ],
)
def test_what_folds_away(same: str):
    assert text_hash(same) == text_hash(BASE)


def test_what_does_not_fold_away():
    assert text_hash("2 + 2") != text_hash("2 = 2")
    assert folded("?!") != folded("...")
    assert len({text_hash(text) for text in ("", "?!", "...", "a", "ab")}) == 5
    assert len(text_hash("")) == DIGITS
    assert len(text_hash(" ".join(map(str, range(999))))) == DIGITS + 4 * WORDS
    assert text_hash("half \ud800 a pair") == text_hash("half a pair")  # and is no error


@given(st.text(max_size=60))
def test_folding_is_done_after_one_time(text: str):
    assert text_hash(folded(text)) == text_hash(text)


@given(st.lists(st.text(st.sampled_from("abc "), max_size=24), max_size=12), st.integers(0, 11))
def test_near_is_as_it_is_defined(texts: list[str], at: int):
    """A second, slow reading of the rule, for texts whose sketches are their words."""
    hashes = list(map(text_hash, texts))
    sets = [set(folded(text).split()) for text in texts]

    def close(a: int, b: int) -> bool:
        both, either = len(sets[a] & sets[b]), len(sets[a] | sets[b])
        return hashes[a] == hashes[b] or (
            both >= 3 and (either - both <= 1 or both >= 0.88 * either)
        )

    one, other = range(min(at, len(texts))), range(min(at, len(texts)), len(texts))
    expected = {hashes[a] for a in one if any(close(a, b) for b in other)}
    assert near({hashes[a] for a in one}, {hashes[b] for b in other}) == expected
    assert near({hashes[b] for b in other}, {hashes[a] for a in one}) == {
        hashes[b] for b in other if any(close(a, b) for a in one)
    }
    linked = groups(hashes)
    assert len(linked) == len(texts)
    for a in range(len(texts)):
        for b in range(a):
            assert linked[a] == linked[b] or not close(a, b)


def test_changed_words_count_by_the_length_of_a_text():
    def words(n: int, *others: str) -> str:
        return " ".join([*(f"word{i}" for i in range(n)), *others])

    def is_near(one: str, other: str) -> bool:
        return bool(near([text_hash(one)], [text_hash(other)]))

    assert is_near(words(3), words(3, "more"))
    assert not is_near(words(2), words(2, "more"))
    assert not is_near(words(14, "this"), words(14, "that"))
    assert is_near(words(15, "this"), words(15, "that"))
    assert not is_near(words(12), words(12, "and", "more"))
    assert is_near(words(200, "this"), words(200, "that"))  # of a sketch
    assert not is_near(words(200), " ".join(f"other{i}" for i in range(200)))
    chinese = "\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u53bb\u516c\u56ed"
    assert is_near(chinese, chinese + "\u5427")


class Words:
    """A tokenizer that has every word."""

    is_fast, unk_token_id = True, -1

    def __init__(self):
        self.known: dict[str, int] = {}

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [self.known.setdefault(w, len(self.known)) for w in text.split()]}


@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_one_template_stay_apart(task: str):
    """Other names, places and things in the same frame are other prompts, all but a few."""
    n, tokenizer = 64, Words()
    prompts = task_prompts(task, tokenizer, n)
    grouped = Counter(groups([text_hash(prompt.clean) for prompt in prompts]))
    assert len(grouped) >= 0.95 * n
    assert max(grouped.values()) <= 2
    others = {text_hash(p.clean) for p in task_prompts(task, tokenizer, n, split="test")}
    assert not near(others, [text_hash(prompt.clean) for prompt in prompts])


def test_many_texts_take_little_time():
    draw = random.Random(0)
    vocabulary = ["the", "of", "and", *(f"w{i}" for i in range(3000))]
    texts = [
        text_hash(" ".join([*draw.choices(vocabulary, k=20), "the", "of"])) for _ in range(4000)
    ]
    started = time.perf_counter()
    assert len(set(groups(texts))) == len(set(texts))
    assert time.perf_counter() - started < 20


def test_lines_know_where_they_stand():
    lines = ["one two three four five", "short", "", "six seven eight nine ten eleven"]
    text = "\n".join(lines)
    known = Lines(text)
    assert known.of(0, len(text)) == tuple(line_hashes(text))
    assert known.of(3, 9) == (text_hash(lines[0]),)
    assert known.of(len(lines[0]) + 2, len(lines[0]) + 4) == ()
    assert known.of(len(text) - 1, len(text)) == (text_hash(lines[3]),)
