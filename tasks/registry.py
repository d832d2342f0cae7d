"""The tasks by name: generators of prompts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..core.data import Prompt
from ..core.errors import look_up
from .agreement import gendered_pronoun, subject_verb_agreement
from .factual_recall import factual_recall
from .generator import SPLITS, Recipe, Split, draw_prompts
from .greater_than import greater_than
from .induction import induction
from .ioi import ioi


__all__ = ["SPLITS", "TASKS", "Split", "Task", "get_task", "task_prompts"]


@dataclass(frozen=True)
class Task:
    """A behaviour that prompts ask for."""

    name: str
    summary: str
    """One line, with the source where there is one."""
    counterfactuals: tuple[str, ...]
    """Ways to change what decides; the first is the default."""
    make: Callable[..., list[Prompt]]
    """(tokenizer, n, seed, split, counterfactual) to prompts."""


def _task(name: str, summary: str, recipe: Recipe, *counterfactuals: str) -> Task:
    return Task(name, summary, counterfactuals, partial(draw_prompts, name, recipe))


_ALL = (
    _task(
        "ioi",
        "Mary and John went out, John gave a drink to: Mary (Wang et al. 2022)",
        ioi,
        "third-name",
        "swapped",
        "random",
    ),
    _task(
        "greater-than",
        "from the year seventeen forty to the year seventeen: sixty (Hanna et al. 2023)",
        greater_than,
        "lowest-start",
    ),
    _task(
        "induction",
        "key dog ring boat key dog: ring (Olsson et al. 2022)",
        induction,
        "swapped",
        "replaced",
    ),
    _task(
        "subject-verb-agreement",
        "the keys near the chair: are (Linzen et al. 2016)",
        subject_verb_agreement,
        "other-number",
    ),
    _task(
        "gendered-pronoun",
        "Mary went to the park because: she (Mathwin et al. 2023)",
        gendered_pronoun,
        "other-gender",
    ),
    _task(
        "factual-recall",
        "the capital of France is called: Paris (Meng et al. 2022)",
        factual_recall,
        "other-subject",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""The command line and `excise ls tasks` read this table."""


def get_task(name: str) -> Task:
    """Return a task.

    Raises:
        ExciseError: No task has this name; names near misses.
    """
    return look_up("task", name, TASKS)


def task_prompts(
    name: str,
    tokenizer: Any,
    n: int,
    seed: int = 0,
    split: Split = "train",
    counterfactual: str | None = None,
) -> list[Prompt]:
    """Make prompts of a task.

    Args:
        name: In `TASKS`.
        tokenizer: A transformers tokenizer.
        n: How many prompts; the first k of n are those of k.
        seed: Equal seeds give equal prompts.
        split: No two splits share names, other telling words, or templates.
        counterfactual: One of the task's; None takes the first.

    Returns:
        Distinct prompts with single-token answers; a counterfactual has its prompt's length.

    Raises:
        ExciseError: An unknown name, split or counterfactual; a tokenizer without the words; more
            prompts than can be told apart.
    """
    task = get_task(name)
    chosen = task.counterfactuals[0] if counterfactual is None else counterfactual
    return task.make(tokenizer, n, seed, split, chosen)
