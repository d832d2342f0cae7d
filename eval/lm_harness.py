"""Dealing with lm-eval: finding its tasks, and keeping its noise and changes to itself."""

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import ExciseError, first_line


SEED = 1234
"""lm-eval's own default, of few-shot examples and sampling."""

LIBRARIES = ("lm_eval", "datasets", "transformers", "huggingface_hub")
"""Names of the loggers that are silenced."""


def require_lm_eval() -> None:
    """Refuse to go on without the package.

    Raises:
        ExciseError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ExciseError("zero-shot tasks need the package lm-eval: pip install 'excise[eval]'")


def leaf_tasks(name: str, include: Path | None = None) -> list[str]:
    """Return the tasks that a name of lm-eval stands for: itself, or those of a group or tag.

    Args:
        name: As in `arc_easy` or `mmlu`.
        include: Folder with YAML files of further tasks.

    Raises:
        ExciseError: lm-eval is not installed, or knows no such name; lists near misses.
    """
    require_lm_eval()
    with contained():
        return _leaves(_manager_of(name, include), name)


def load_task(name: str, include: Path | None = None) -> Any:
    """Build one task and read its data.

    Args:
        name: A task, no group.
        include: Folder with YAML files of further tasks; they may hold Python code, which runs.

    Returns:
        lm-eval's task object.

    Raises:
        ExciseError: An unknown task (lists near misses), a group (lists its tasks), data that
            cannot be had, or a task that is not about text alone or runs code a model wrote.
    """
    manager = _manager_of(name, include)
    if (leaves := _leaves(manager, name)) != [name]:
        some = ", ".join(leaves[:8]) + (", ..." if len(leaves) > 8 else "")
        raise ExciseError(f"{name} is a group of {len(leaves)} tasks, give them by name: {some}")
    try:
        (task,) = manager.load([name])["tasks"].values()
    except Exception as error:  # a task may run any code: whatever it raises is its reason
        reason = first_line(error).rstrip(".")
        raise ExciseError(
            f"task {name!r} cannot be loaded: {reason}; if its data is not on this machine, load "
            "it once online, or write a local task and include its folder"
        ) from error
    for mark, what in {"UNSAFE_CODE": "runs code that a model wrote", "MULTIMODAL": "is not about "
                       "text alone"}.items():  # fmt: skip
        if getattr(task, mark, False):
            raise ExciseError(f"task {name!r} {what}: use lm-eval itself for it")
    return task


def _manager_of(name: str, include: Path | None) -> Any:
    """Return the task manager that knows a name: that of the folder, else of lm-eval itself."""
    from lm_eval.tasks import TaskManager

    local: list[str] = []
    if include is not None:
        manager = TaskManager(include_path=str(include), include_defaults=False)
        if name in (local := manager.all_tasks):
            return manager
    manager = _builtin()
    if name in manager.all_tasks:
        return manager
    names = {*local, *manager.all_tasks}
    near = get_close_matches(name, sorted(names), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ExciseError(f"unknown task {name!r}: {hint}lm-eval ls tasks lists all {len(names)}")


@cache
def _builtin() -> Any:
    """Index lm-eval's own tasks, which takes seconds: once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _leaves(manager: Any, name: str) -> list[str]:
    entry = manager.task_index.get(name)
    if entry is None or name in manager.all_subtasks:
        return [name]
    children = sorted(entry.tags) if name in manager.all_tags else entry.cfg["task"]
    found: list[str] = []
    for child in [children] if isinstance(children, str) else children:
        inner: Any = child.get("task", child.get("group")) if isinstance(child, dict) else child
        for part in [inner] if isinstance(inner, str) else inner:
            found += _leaves(manager, part)
    return list(dict.fromkeys(found))


@contextmanager
def lent(model: Any) -> Iterator[None]:
    """Lend a model to lm-eval, which puts it in evaluation mode and ties its weights again.

    Tying would undo an edit that gave embedding and head different values, so it is left out.
    """
    modes = [(module, module.training) for module in model.modules()]
    own = vars(model).get("tie_weights")
    vars(model)["tie_weights"] = lambda *_, **__: None
    try:
        yield
    finally:
        del vars(model)["tie_weights"]
        if own is not None:
            vars(model)["tie_weights"] = own
        for module, mode in modes:
            module.training = mode


@contextmanager
def contained(progress: bool = False) -> Iterator[list[str]]:
    """Keep what lm-eval prints, logs, warns and seeds to this block.

    Args:
        progress: Let its progress bars through, on stderr.

    Yields:
        A list that fills with lm-eval's records of requests it had to cut.
    """
    cuts: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        sink = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(redirect_stdout(sink))
        if not progress:
            stack.enter_context(redirect_stderr(sink))
        for name in LIBRARIES:
            logger = logging.getLogger(name)
            stack.callback(_set_logger, logger, logger.handlers, logger.propagate)
            _set_logger(logger, [_Cuts(cuts)], False)
        random.seed(0)  # these three as in lm-eval's simple_evaluate
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        yield cuts


def _set_logger(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.handlers, logger.propagate = handlers, propagate


class _Cuts(logging.Handler):
    """Keeps the records that tell of truncation, and shows none."""

    def __init__(self, found: list[str]):
        super().__init__(logging.WARNING)
        self.found = found

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("lm_eval") and "runcat" in (text := record.getMessage()):
            self.found.append(text)
