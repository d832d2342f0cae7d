"""Whose turn it is with a model, and changes of its weights that come off in any order."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from .errors import ExciseError


if TYPE_CHECKING:
    from torch import Tensor

    Plan = Callable[[], Iterable[tuple[Tensor, Any, Any]]]


@dataclass
class _Holder:
    thread: threading.Thread
    depth: int = 0


@dataclass(eq=False)
class _Change:
    plan: "Plan"
    saved: "list[tuple[Tensor, Any, Tensor]]" = field(default_factory=list)

    def make(self) -> None:
        import torch

        with torch.no_grad():
            for tensor, where, new in self.plan():
                self.saved.append((tensor, where, tensor[where].clone()))
                tensor[where] = new

    def undo(self) -> None:
        import torch

        with torch.no_grad():
            while self.saved:
                tensor, where, old = self.saved[-1]
                tensor[where] = old
                self.saved.pop()


_LOCK = threading.Lock()
_HOLDERS: "WeakKeyDictionary[Any, _Holder]" = WeakKeyDictionary()
_CHANGES: "WeakKeyDictionary[Any, list[_Change]]" = WeakKeyDictionary()
"""What is changed in each model now, in the order in which it was."""


@contextmanager
def held(model: Any) -> Iterator[None]:
    """Keep other threads from putting rules, masks or edits on a model meanwhile.

    Raises:
        ExciseError: Another thread does so now.
    """
    thread = threading.current_thread()
    with _LOCK:
        holder = _HOLDERS.setdefault(model, _Holder(thread))
        if holder.thread is not thread:
            raise ExciseError(
                f"thread {holder.thread.name!r} has this model in a scope, mask or edit: let it "
                "leave that first, or give each thread a model of its own"
            )
        holder.depth += 1
    try:
        yield
    finally:
        with _LOCK:
            holder.depth -= 1
            if not holder.depth:
                _HOLDERS.pop(model, None)


@contextmanager
def changed(model: Any, plan: "Plan") -> Iterator[None]:
    """Have a model with other values in some of its tensors, for a while; undone bit by bit.

    Blocks may overlap and end in any order: one that ends takes its own change off and leaves the
    others as if it had never been.

    Args:
        model: The model.
        plan: Says what is written, as tensors, indices and values, of the model as it is when
            called; called again where a change below it comes off.

    Raises:
        ExciseError: Another thread holds the model.
    """
    with held(model):
        stack, change = _CHANGES.setdefault(model, []), _Change(plan)
        stack.append(change)
        try:
            change.make()
            yield
        finally:
            at = stack.index(change)
            above = stack[at + 1 :]
            for each in reversed(stack[at:]):
                each.undo()
            del stack[at]
            for each in above:
                each.make()
            if not stack:
                _CHANGES.pop(model, None)
