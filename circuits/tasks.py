"""The tasks by name: generators of prompts."""

from collections.abc import Callable
from typing import Any

from ..core.data import Prompt
from ..core.errors import look_up
from .ioi import ioi_prompts


TASKS: dict[str, Callable[[Any, int, int], list[Prompt]]] = {"ioi": ioi_prompts}
"""(tokenizer, number, seed) to prompts; the command line and `excise ls tasks` read this table."""


def get_task(name: str) -> Callable[[Any, int, int], list[Prompt]]:
    """Return a task's generator.

    Raises:
        ExciseError: No task has this name.
    """
    return look_up("task", name, TASKS)


def task_prompts(name: str, tokenizer: Any, n: int, seed: int = 0) -> list[Prompt]:
    """Make prompts of a task.

    Raises:
        ExciseError: No task has this name.
    """
    return get_task(name)(tokenizer, n, seed)
