"""What holds for the prompts of every task, read from their texts by a second implementation."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from excise.core.data import Prompt, encode_prompts
from excise.core.errors import ExciseError
from excise.tasks import agreement, factual_recall, greater_than, induction, ioi
from excise.tasks.factual_recall import CAPITALS, LANGUAGES
from excise.tasks.generator import PATIENCE
from excise.tasks.registry import SPLITS, TASKS, Split, get_task, task_prompts
from excise.tasks.vocabulary import NAMES, NOUNS, WOMEN
from hypothesis import given, settings
from hypothesis import strategies as st


N = 24
"""The least that every task can make of the tiny tokenizer's words."""

every_task = pytest.mark.parametrize("task", TASKS)
every_split = pytest.mark.parametrize("split", SPLITS)


class Tokenizer:
    """One token for each word or sign, or for each letter of those it does not know."""

    unk_token_id = None

    def __init__(self, knows: Callable[[str], bool] = lambda _: True):
        self.knows, self.ids = knows, dict[str, int]()

    def __call__(self, text: str) -> dict[str, list[int]]:
        units = [u for w in tokens(text) for u in ([w] if self.knows(w) else w)]
        return {"input_ids": [self.ids.setdefault(unit, len(self.ids)) for unit in units]}


def tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


# --- what is right behind a prompt, told from its text alone ---


def right_in_ioi(text: str, word: str) -> bool:
    names = [w for w in tokens(text) if any(w in NAMES[split] for split in SPLITS)]
    return word in names[:2] and word != names[2]


NUMBERS = tokens(
    "one two three four five six seven eight nine ten eleven twelve "
    "twenty thirty forty fifty sixty seventy eighty ninety"
)


def right_in_greater_than(text: str, word: str) -> bool:
    (start,) = [NUMBERS.index(w) for w in tokens(text) if w in NUMBERS]
    return NUMBERS.index(word) > start


def right_in_induction(text: str, word: str) -> bool:
    *before, last = text.split()
    return before[before.index(last) + 1] == word


def right_in_agreement(text: str, word: str) -> bool:
    pairs = [pair for split in SPLITS for pair in NOUNS[split]]
    numbers = [pair.index(w) for w in tokens(text) for pair in pairs if w in pair]
    assert numbers in ([0, 1], [1, 0], [0, 0], [1, 1])  # a subject and an attractor
    return word in (("is", "was"), ("are", "were"))[numbers[0]]


def right_in_pronouns(text: str, word: str) -> bool:
    (name,) = [w for w in tokens(text) if any(w in NAMES[split] for split in SPLITS)]
    return word == ("she" if name in WOMEN else "he")


def right_in_facts(text: str, word: str) -> bool:
    asks_language = re.search("speak|language|talk|printed", text) is not None
    tables = (LANGUAGES if asks_language else CAPITALS).facts.values()
    return word in [o for table in tables for s, o in table.items() if s in tokens(text)]


RIGHT: dict[str, Callable[[str, str], bool]] = {
    "ioi": right_in_ioi,
    "greater-than": right_in_greater_than,
    "induction": right_in_induction,
    "subject-verb-agreement": right_in_agreement,
    "gendered-pronoun": right_in_pronouns,
    "factual-recall": right_in_facts,
}

BEHIND_COUNTERFACTUALS = {
    ("ioi", "third-name"): (True, True),
    ("ioi", "swapped"): (False, True),
    ("ioi", "random"): (False, False),
    ("greater-than", "lowest-start"): (True, True),
    ("induction", "swapped"): (False, True),
    ("induction", "replaced"): (False, False),
    ("subject-verb-agreement", "other-number"): (False, True),
    ("gendered-pronoun", "other-gender"): (False, True),
    ("factual-recall", "other-subject"): (False, True),
}
"""Whether answer and wrong answer would be right there."""


@every_split
@pytest.mark.parametrize(("task", "counterfactual"), BEHIND_COUNTERFACTUALS)
def test_the_answer_is_right_and_the_counterfactual_decides_otherwise(
    tiny_tokenizer: Any, task: str, counterfactual: str, split: Split
):
    expected = BEHIND_COUNTERFACTUALS[task, counterfactual]
    few = task_prompts(task, tiny_tokenizer, N, 1, split, counterfactual)
    many = task_prompts(task, Tokenizer(), 120, 1, split, counterfactual)
    for prompt in few + many:
        words = (prompt.answer or "", prompt.wrong or "")
        assert tuple(RIGHT[task](prompt.clean, word) for word in words) == (True, False)
        assert tuple(RIGHT[task](prompt.counterfactual or "", word) for word in words) == expected


def test_each_counterfactual_was_looked_at():
    assert set(BEHIND_COUNTERFACTUALS) == {
        (task.name, name) for task in TASKS.values() for name in task.counterfactuals
    }


# --- tokens ---


def check_tokens(tokenizer: Any, prompts: list[Prompt]) -> None:
    for prompt, sample in zip(prompts, encode_prompts(tokenizer, prompts), strict=True):
        changed = tokenizer(prompt.counterfactual)["input_ids"]
        assert len(changed) == len(sample.input_ids)
        assert tuple(changed) != sample.input_ids
        assert None not in (sample.answer, sample.wrong)
        assert sample.answer != sample.wrong


@every_task
@every_split
def test_tokens_of_the_tiny_tokenizer(tiny_tokenizer: Any, task: str, split: Split):
    for counterfactual in TASKS[task].counterfactuals:
        prompts = task_prompts(task, tiny_tokenizer, N, 0, split, counterfactual)
        check_tokens(tiny_tokenizer, prompts)


@every_task
@every_split
def test_words_of_different_lengths_are_not_mixed(task: str, split: Split):
    """A tokenizer that spells every second word, countries above all."""

    def knows(word: str) -> bool:
        spelled = word in CAPITALS.facts[split] or sum(map(ord, word)) % 4 == 0
        return word in ("he", "she") or not spelled

    tokenizer = Tokenizer(knows)
    for counterfactual in TASKS[task].counterfactuals:
        check_tokens(tokenizer, task_prompts(task, tokenizer, N, 0, split, counterfactual))


def test_tokens_of_the_embedded_model(smollm2: str):
    from excise.core.gguf import converted_gguf, embedded_gguf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted_gguf(embedded_gguf()))
    for task in TASKS:
        for split in SPLITS:
            check_tokens(tokenizer, task_prompts(task, tokenizer, 128, 0, split))


# --- drawing ---


@every_task
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, N), n=st.integers(1, N))
@settings(max_examples=10)
def test_prompts_differ_and_depend_on_the_seed_alone(task: str, seed: int, k: int, n: int):
    tokenizer = Tokenizer()
    for split in SPLITS:
        prompts = task_prompts(task, tokenizer, n, seed, split)
        assert len({prompt.clean.casefold() for prompt in prompts}) == n
        assert task_prompts(task, tokenizer, min(k, n), seed, split) == prompts[: min(k, n)]
        others = [
            [p.clean for p in task_prompts(task, tokenizer, n, seed, split, name)]
            for name in TASKS[task].counterfactuals
        ]
        assert others == [[p.clean for p in prompts]] * len(others)
    whole = task_prompts(task, tokenizer, N, seed)
    assert task_prompts(task, tokenizer, N, seed) == whole
    assert task_prompts(task, tokenizer, N, seed + 1) != whole


@pytest.mark.parametrize("split", SPLITS)
def test_classes_are_balanced(split: Split):
    tokenizer = Tokenizer()
    he = Counter(p.answer for p in task_prompts("gendered-pronoun", tokenizer, 60, 0, split))
    assert he == {"she": 30, "he": 30}
    plural = Counter(
        p.answer in ("are", "were")
        for p in task_prompts("subject-verb-agreement", tokenizer, 60, 0, split)
    )
    assert plural == {True: 30, False: 30}


# words without which English does not go, the numbers, and what the answers are about
SHARED = set(
    tokens(
        """the a an of to in at by from for with and that it is was are were has had you i he she
        her his they we us me my our on near this there because when while The A It In I We You They
        She He year city capital language"""
    )
    + NUMBERS
)


@every_task
def test_splits_share_no_telling_word(task: str):
    """Which names and places too: whatever word is in prompts of two splits is listed above."""
    tokenizer = Tokenizer()
    texts = {s: [p.clean for p in task_prompts(task, tokenizer, 150, 2, s)] for s in SPLITS}
    words = [{w for text in texts[s] for w in tokens(text) if w.isalpha()} for s in SPLITS]
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert words[one] & words[other] <= SHARED


TEMPLATES = {
    "ioi": [ioi.TEMPLATES],
    "greater-than": [scale.templates for scale in greater_than.SCALES],
    "induction": [induction.TEMPLATES],
    "subject-verb-agreement": [agreement.ATTRACTORS],
    "gendered-pronoun": [agreement.PRONOUNS],
    "factual-recall": [
        factual_recall.LEADS,
        *(relation.statements for relation in factual_recall.RELATIONS),
    ],
}


@every_task
def test_splits_share_no_template(task: str):
    templates = [t for table in TEMPLATES[task] for split in SPLITS for t in table[split]]
    assert len(set(templates)) == len(templates)
    for split in SPLITS:
        texts = " ".join(p.clean for p in task_prompts(task, Tokenizer(), 150, 0, split))
        for template in (t for table in TEMPLATES[task] for t in table[split]):
            assert max(re.split(r"\{\w+\}", template), key=len) in texts  # each is in use


# --- the table, and what cannot be made ---


@every_task
def test_the_table(tiny_tokenizer: Any, task: str):
    entry = get_task(task)
    assert entry.name == task
    assert len(entry.summary.splitlines()) == 1
    default = entry.make(tiny_tokenizer, 5, 2, "test", entry.counterfactuals[0])
    assert task_prompts(task, tiny_tokenizer, 5, 2, "test") == default


@every_task
@every_split
def test_a_tokenizer_without_the_words(task: str, split: Split):
    letters = Tokenizer(lambda _: False)
    with pytest.raises(ExciseError, match=f"task {task}, split {split}: only 0 of .*--prompts F"):
        task_prompts(task, letters, 3, 0, split)


def test_more_prompts_than_there_are(tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match=r"task factual-recall, split test: 500 prompts .* 30 "):
        task_prompts("factual-recall", tiny_tokenizer, 500, 0, "test")


def test_all_prompts_can_be_had(tiny_tokenizer: Any):
    """Three countries, two statements, five beginnings."""
    assert PATIENCE > 500
    assert len(task_prompts("factual-recall", tiny_tokenizer, 30, 0, "test")) == 30


def test_wrong_names_are_refused(tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match="unknown task 'oio': did you mean 'ioi'"):
        task_prompts("oio", tiny_tokenizer, 4)
    with pytest.raises(ExciseError, match="unknown split 'tset': did you mean 'test'"):
        task_prompts("ioi", tiny_tokenizer, 4, split="tset")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ExciseError, match="unknown counterfactual of ioi 'swap': did you mean 's"):
        task_prompts("ioi", tiny_tokenizer, 4, counterfactual="swap")
    with pytest.raises(ExciseError, match="asked for 0 prompts"):
        task_prompts("induction", tiny_tokenizer, 0)
