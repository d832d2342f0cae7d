"""Prompts of indirect object identification."""

from collections import Counter
from typing import Any

import pytest
from excise.circuits.ioi import NAMES, OBJECTS, PLACES, ioi_prompts, single_token_words
from excise.circuits.tasks import TASKS, task_prompts
from excise.core.data import encode_prompts, single_token
from excise.core.errors import ExciseError


class Tokenizer:
    """One token for each known word, one for each letter of any other."""

    unk_token_id = None

    def __init__(self, known: tuple[str, ...]):
        self.known = known

    def __call__(self, text: str) -> dict[str, list[int]]:
        ids = ([1] if word in self.known else [2] * len(word) for word in text.split())
        return {"input_ids": [token for word in ids for token in word]}


def names_in(text: str) -> Counter[str]:
    words = text.replace(",", " ").split()
    return Counter(word for word in words if word in NAMES)


def test_the_answer_is_the_name_that_appears_once(tiny_tokenizer: Any):
    for prompt in ioi_prompts(tiny_tokenizer, 200):
        assert prompt.answer
        assert prompt.wrong
        assert prompt.counterfactual
        assert names_in(prompt.clean) == {prompt.answer: 1, prompt.wrong: 2}
        (third,) = names_in(prompt.counterfactual) - names_in(prompt.clean)
        assert names_in(prompt.counterfactual) == {prompt.answer: 1, prompt.wrong: 1, third: 1}
        assert prompt.clean.split()[-1] == "to"


def test_answers_are_single_tokens_and_prompts_know_every_word(tiny_tokenizer: Any):
    prompts = ioi_prompts(tiny_tokenizer, 100)
    for prompt, sample in zip(prompts, encode_prompts(tiny_tokenizer, prompts), strict=True):
        assert sample.answer == single_token(tiny_tokenizer, prompt.answer)
        assert sample.wrong is not None
        assert tiny_tokenizer.unk_token_id not in sample.input_ids


def test_counterfactuals_have_as_many_tokens(tiny_tokenizer: Any):
    for prompt in ioi_prompts(tiny_tokenizer, 50):
        lengths = {
            len(tiny_tokenizer(t)["input_ids"]) for t in (prompt.clean, prompt.counterfactual)
        }
        assert len(lengths) == 1


def test_equal_seeds_give_equal_prompts(tiny_tokenizer: Any):
    assert ioi_prompts(tiny_tokenizer, 20, 3) == ioi_prompts(tiny_tokenizer, 20, 3)
    assert ioi_prompts(tiny_tokenizer, 20, 3) != ioi_prompts(tiny_tokenizer, 20, 4)
    assert ioi_prompts(tiny_tokenizer, 40, 3)[:20] == ioi_prompts(tiny_tokenizer, 20, 3)
    assert task_prompts("ioi", tiny_tokenizer, 5, 1) == ioi_prompts(tiny_tokenizer, 5, 1)


def test_half_name_the_giver_second(tiny_tokenizer: Any):
    orders = Counter(
        prompt.clean.index(prompt.answer or "") < prompt.clean.index(prompt.wrong or "")
        for prompt in ioi_prompts(tiny_tokenizer, 60)
    )
    assert orders == {True: 30, False: 30}


def test_names_of_several_tokens_are_left_out():
    tokenizer = Tokenizer(("Mary", "John", "Tom", "store"))
    assert single_token_words(tokenizer, NAMES) == ["Mary", "John", "Tom"]
    used = {name for prompt in ioi_prompts(tokenizer, 30) for name in names_in(prompt.clean)}
    assert used == {"Mary", "John", "Tom"}


def test_unknown_words_are_no_names(tiny_tokenizer: Any):
    assert single_token_words(tiny_tokenizer, ["Mary", "zebra", "Mary John"]) == ["Mary"]


def test_what_cannot_be_made_is_named(tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match=f"only 2 of {len(NAMES)} names"):
        ioi_prompts(Tokenizer(("Mary", "John")), 4)
    with pytest.raises(ExciseError, match="asked for 0"):
        ioi_prompts(tiny_tokenizer, 0)
    with pytest.raises(ExciseError, match="unknown task 'oio': did you mean 'ioi'"):
        task_prompts("oio", tiny_tokenizer, 4)


def test_the_tables_have_no_doubles():
    for table in (NAMES, PLACES, OBJECTS):
        assert len(set(table)) == len(table)
    assert all(make.__doc__ for make in TASKS.values())  # `excise ls tasks` prints it
