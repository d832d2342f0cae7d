"""Prompts of indirect object identification."""

from collections import Counter
from typing import Any

import pytest
from excise.core.data import encode_prompts, single_token
from excise.core.errors import ExciseError
from excise.tasks.generator import SPLITS, Split, is_single_token
from excise.tasks.ioi import OBJECTS, ioi_prompts
from excise.tasks.registry import task_prompts
from excise.tasks.vocabulary import NAMES, PLACES, WOMEN


class Tokenizer:
    """One token for each known word, one for each letter of any other."""

    unk_token_id = None

    def __init__(self, known: tuple[str, ...]):
        self.known = known

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = ([1] if word in self.known else [2] * len(word) for word in text.split())
        return {"input_ids": [token for word in ids for token in word]}


def names_in(text: str, split: Split = "train") -> Counter[str]:
    words = text.replace(",", " ").split()
    return Counter(word for word in words if word in NAMES[split])


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_the_name_that_appears_once(tiny_tokenizer: Any, split: Split):
    for prompt in ioi_prompts(tiny_tokenizer, 200, split=split):
        assert prompt.answer
        assert prompt.wrong
        assert prompt.counterfactual
        clean, changed = (names_in(text, split) for text in (prompt.clean, prompt.counterfactual))
        assert clean == {prompt.answer: 1, prompt.wrong: 2}
        (third,) = changed - clean
        assert changed == {prompt.answer: 1, prompt.wrong: 1, third: 1}
        assert prompt.clean.split()[-1] == "to"


def test_the_other_counterfactuals_name_others_or_trade_the_places(tiny_tokenizer: Any):
    asked = (ioi_prompts(tiny_tokenizer, 100, counterfactual=c) for c in ("swapped", "random"))
    for swapped, strangers in zip(*asked, strict=True):
        assert swapped.clean == strangers.clean
        assert names_in(swapped.counterfactual or "") == {swapped.answer: 2, swapped.wrong: 1}
        found = names_in(strangers.counterfactual or "")
        assert sorted(found.values()) == [1, 1, 1]
        assert not found & names_in(strangers.clean)


def test_answers_are_single_tokens_and_prompts_know_every_word(tiny_tokenizer: Any):
    prompts = ioi_prompts(tiny_tokenizer, 100)
    for prompt, sample in zip(prompts, encode_prompts(tiny_tokenizer, prompts), strict=True):
        assert sample.answer == single_token(tiny_tokenizer, prompt.answer)
        assert sample.wrong is not None
        assert tiny_tokenizer.unk_token_id not in sample.input_ids


def test_equal_seeds_give_equal_prompts(tiny_tokenizer: Any):
    assert ioi_prompts(tiny_tokenizer, 20, 3) == ioi_prompts(tiny_tokenizer, 20, 3)
    assert ioi_prompts(tiny_tokenizer, 20, 3) != ioi_prompts(tiny_tokenizer, 20, 4)
    assert task_prompts("ioi", tiny_tokenizer, 5, 1) == ioi_prompts(tiny_tokenizer, 5, 1)


def test_half_name_the_giver_second(tiny_tokenizer: Any):
    orders = Counter(
        prompt.clean.index(prompt.answer or "") < prompt.clean.index(prompt.wrong or "")
        for prompt in ioi_prompts(tiny_tokenizer, 60)
    )
    assert orders == {True: 30, False: 30}


def test_names_of_several_tokens_are_left_out():
    known = ("Mary", "John", "Tom", "Anna", "Lisa")
    tokenizer = Tokenizer((*known, "store"))
    prompts = ioi_prompts(tokenizer, 60)
    assert {name for prompt in prompts for name in names_in(prompt.clean)} == set(known)


def test_unknown_words_are_no_names(tiny_tokenizer: Any):
    words = ["Mary", "zebra", "Mary John"]
    assert [is_single_token(tiny_tokenizer, word) for word in words] == [True, False, False]


def test_what_cannot_be_made_is_named(tiny_tokenizer: Any):
    few = Tokenizer(("Mary", "John", "Tom", "Anna"))
    with pytest.raises(ExciseError, match=f"only 4 of {len(NAMES['train'])} names"):
        ioi_prompts(few, 4)
    with pytest.raises(ExciseError, match="asked for 0"):
        ioi_prompts(tiny_tokenizer, 0)


def test_the_tables_have_no_doubles():
    for table in (NAMES, PLACES, OBJECTS):
        words = [word for split in SPLITS for word in table[split]]
        assert len(set(words)) == len(words)
    assert set(NAMES["train"] + NAMES["validation"] + NAMES["test"]) > WOMEN
    for split in SPLITS:  # as many women as men
        assert 2 * len(WOMEN & set(NAMES[split])) == len(NAMES[split])
