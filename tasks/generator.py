"""Distinct prompts drawn from lists of words, as far as a tokenizer has those words."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from ..core.data import Prompt, answer_tokens
from ..core.errors import ExciseError, look_up, unknown_name


Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Within a task no two of them share a template, or a word that tells prompts apart."""

PATIENCE = 1000
"""So many draws in a row that bring nothing new mean that there is nothing new."""

OWN_PROMPTS = "give your own prompts with --prompts FILE"

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Draft:
    """A prompt with all its counterfactuals, by name."""

    clean: str
    answer: str
    wrong: str
    counterfactuals: Mapping[str, str]


@dataclass(frozen=True)
class Words:
    """The words of one task and split that a tokenizer has."""

    task: str
    split: Split
    tokenizer: Any

    def __post_init__(self):
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)

    def single(self, kind: str, words: Sequence[str], least: int) -> list[str]:
        """Keep the words of one token.

        Args:
            kind: What they are, for the error.
            words: Candidates.
            least: How many the task needs.

        Raises:
            ExciseError: Fewer are left.
        """
        kept = [word for word in words if is_single_token(self.tokenizer, word)]
        return self.enough(kind, kept, least, of=len(words))

    def pairs(
        self, kind: str, pairs: Sequence[tuple[str, str]], least: int
    ) -> list[tuple[str, str]]:
        """Keep the pairs of words of one token each; see `single`."""
        kept = [pair for pair in pairs if all(is_single_token(self.tokenizer, w) for w in pair)]
        return self.enough(kind, kept, least, of=len(pairs))

    def enough(self, kind: str, kept: list[Entry], least: int, of: int) -> list[Entry]:
        """Return what was kept of so many candidates.

        Raises:
            ExciseError: It is less than the task needs.
        """
        if len(kept) < least:
            raise ExciseError(
                f"task {self.task}, split {self.split}: only {len(kept)} of {of} {kind} are one "
                f"token of this tokenizer, and {least} are needed: {OWN_PROMPTS}"
            )
        return kept


Recipe = Callable[[Words], Callable[[random.Random, int], Draft]]
"""Takes the words there are; returns what drafts the prompt of a given number."""


def draw_prompts(
    task: str,
    recipe: Recipe,
    tokenizer: Any,
    n: int,
    seed: int,
    split: Split,
    counterfactual: str,
) -> list[Prompt]:
    """Draw prompts that differ, and whose answers are one token each.

    The first k of n prompts are the k of a shorter list, and which counterfactual is asked for
    changes no clean prompt: all of them have to fit.

    Args:
        task: Its name, for errors.
        recipe: Drafts prompts.
        tokenizer: A transformers tokenizer.
        n: How many prompts.
        seed: Equal seeds give equal prompts.
        split: Which words and templates.
        counterfactual: Which of the draft's.

    Returns:
        Prompts whose counterfactuals have as many tokens as they have.

    Raises:
        ExciseError: `n` is below 1, or more than there are distinct prompts; an unknown split or
            counterfactual; a tokenizer that lacks the words.
    """
    if n < 1:
        raise ExciseError(f"asked for {n} prompts: give at least 1")
    drafted = recipe(Words(task, split, tokenizer))
    draw, found, misses = random.Random(seed), dict[str, Prompt](), 0
    while len(found) < n:
        draft = drafted(draw, len(found))
        text = look_up(f"counterfactual of {task}", counterfactual, draft.counterfactuals)
        if draft.clean not in found and _fits(tokenizer, draft):
            found[draft.clean] = Prompt(draft.clean, text, draft.answer, draft.wrong)
            misses = 0
            continue
        misses += 1
        if misses == PATIENCE:
            raise ExciseError(
                f"task {task}, split {split}: {n} prompts asked for, and only {len(found)} that "
                f"differ and fit this tokenizer were found: ask for fewer, or {OWN_PROMPTS}"
            )
    return list(found.values())


def is_single_token(tokenizer: Any, word: str, prompt: str = "the") -> bool:
    """Whether a word is one known token behind a prompt."""
    ids = answer_tokens(tokenizer, word, prompt)
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _fits(tokenizer: Any, draft: Draft) -> bool:
    texts = (draft.clean, *draft.counterfactuals.values())
    return len({len(tokenizer(text)["input_ids"]) for text in texts}) == 1 and all(
        is_single_token(tokenizer, word, draft.clean) for word in (draft.answer, draft.wrong)
    )
