"""What a model is scored, pruned, searched or corrected on: one of four sources of data."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.data import (
    Prompt,
    Sample,
    dataset_text,
    encode_continuations,
    encode_prompts,
    encode_texts,
    prompt_of,
    read_prompts,
)
from ..core.documents import BUILTIN, read_documents
from ..core.errors import ExciseError, shown, unknown_name
from ..core.files.reading import read_text
from .registry import SPLITS, Split, get_task, task_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Prompts = str | os.PathLike[str] | Iterable[Prompt | Mapping[str, Any] | str]
    Texts = str | os.PathLike[str] | Iterable[str]

DOCUMENTS = 50
"""Documents of a dataset that are read for each sample: enough for most texts."""

GIVEN = "given"
"""Name of prompts and texts that a caller has handed over, and no file holds."""


@dataclass(frozen=True)
class Source:
    """Where reference samples come from; `Source.of` makes one, and refuses what cannot be read."""

    kind: str
    """`task`, `prompts`, `text` or `dataset`."""
    name: str
    """Of the task or the dataset, or the path of the file; `builtin` or `given` without one."""
    n: int = 64
    """How many samples at most."""
    length: int = 512
    """Tokens per sample of a text."""
    seed: int = 0
    """Of a task's prompts."""
    split: Split = "train"
    """Of a task's prompts."""
    counterfactual: str | None = None
    """Of a task's prompts; None is the task's first."""
    given: tuple[Any, ...] = field(default=(), repr=False)
    """The prompts, or the documents of a text."""

    @classmethod
    def of(
        cls,
        task: str | None = None,
        prompts: "Prompts | None" = None,
        text: "Texts | None" = None,
        dataset: str | None = None,
        *,
        samples: int = 64,
        length: int = 512,
        seed: int = 0,
        split: Split = "train",
        counterfactual: str | None = None,
    ) -> "Source":
        """Return the one source that is given; files are read here, before any model is loaded.

        Args:
            task: Name of a built-in task, as in `ioi`; see `excise.tasks.registry.TASKS`.
            prompts: Path of a JSONL file, or the prompts: each a `Prompt`, a dictionary of the
                same fields, or its text alone.
            text: Path of a text file, or of a `.jsonl` with a `text` per row; the documents; or
                `builtin`, of whose pages every second one is taken: the others are to measure on.
            dataset: `id[:config[:split]]` of a dataset of the hub, or a folder.
            samples: How many samples at most.
            length: Tokens per sample of a text or dataset.
            seed: Of a task's prompts.
            split: Of a task's prompts: `train`, `validation` or `test`.
            counterfactual: Of a task's prompts; by default the task's first.

        Raises:
            ExciseError: No source or more than one, an unknown task or split, or a file that is
                missing, empty or broken.
        """
        sources = {"task": task, "prompts": prompts, "text": text, "dataset": dataset}
        found = {kind: value for kind, value in sources.items() if value is not None}
        if len(found) != 1:
            got = " and ".join(f"`{name}`" for name in found) or "none"
            raise ExciseError(f"give one of `task`, `text`, `dataset`, `prompts`; got {got}")
        if samples < 1:
            raise ExciseError(f"`samples` is {samples}: give at least 1")
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        ((kind, value),) = found.items()
        if counterfactual is not None and task is None:
            raise ExciseError(
                "`counterfactual` belongs to `task`: write yours into the prompts, each its own"
            )
        given: tuple[Any, ...] = ()
        if task is not None:
            get_task(task)
        elif prompts is not None:
            given = _prompts(prompts)
        elif text is not None:
            given = _texts(text)
        name = os.fspath(value) if isinstance(value, str | os.PathLike) else GIVEN
        return cls(kind, name, samples, length, seed, split, counterfactual, given)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def default_target(self) -> str:
        """What relevance explains unless the caller says otherwise."""
        by_kind = {"task": "logit-difference", "prompts": "logit"}
        return by_kind.get(self.kind, "next-tokens")

    @property
    def provenance(self) -> dict[str, Any]:
        """What an artefact says of where its samples are from; their texts are hashed elsewhere."""
        return {"source": str(self), "sample_seed": self.seed}

    def samples(self, tokenizer: "PreTrainedTokenizerBase", target: str) -> list[Sample]:
        """Tokenise what relevance is taken of.

        Args:
            tokenizer: The model's.
            target: What is explained: for `continuation` whole answers are appended.

        Raises:
            ExciseError: The source is too short, or unfit for the target.
        """
        if self.kind in ("task", "prompts"):
            encode = encode_continuations if target == "continuation" else encode_prompts
            return encode(tokenizer, self.prompts(tokenizer))
        return encode_texts(tokenizer, self.documents(), self.n, self.length)

    def prompts(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        split: Split | None = None,
        n: int | None = None,
    ) -> list[Prompt]:
        """Return the prompts of a task or of a caller, the first `n`.

        Args:
            tokenizer: Says which words a task can be made of.
            split: Another split of the task than the source's own.
            n: Another number than the source's own.

        Raises:
            ExciseError: As `task_prompts`; or the source is a text.
        """
        n = self.n if n is None else n
        if self.kind == "task":
            split = split or self.split
            return task_prompts(self.name, tokenizer, n, self.seed, split, self.counterfactual)
        if self.kind != "prompts":
            raise ExciseError(f"{self} has no prompts: give `task` or `prompts`")
        return list(self.given[:n])

    def documents(self) -> list[str]:
        """Return the documents of a text or of a dataset.

        Raises:
            ExciseError: The dataset cannot be read; or the source holds prompts.
        """
        if self.kind == "dataset":
            return dataset_text(self.name, self.n * DOCUMENTS)
        if self.kind != "text":
            raise ExciseError(f"{self} is no text: give `text` or `dataset`")
        return list(self.given)


def _prompts(prompts: "Prompts") -> tuple[Prompt, ...]:
    if isinstance(prompts, str | os.PathLike):
        return tuple(read_prompts(os.fspath(prompts)))

    def one(at: int, row: Any) -> Prompt:
        row = {"clean": row} if isinstance(row, str) else row
        return row if isinstance(row, Prompt) else prompt_of(row, f"`prompts`, number {at}")

    return tuple(one(at, row) for at, row in enumerate(_items("prompts", prompts)))


def _texts(text: "Texts") -> tuple[str, ...]:
    if not isinstance(text, str | os.PathLike):
        documents = _items("text", text)
        if wrong := [one for one in documents if not isinstance(one, str)]:
            raise ExciseError(f"`text` holds {shown(wrong[0])}: give texts, each one document")
        return tuple(documents)
    name = os.fspath(text)
    if name == BUILTIN:
        return tuple(read_documents(name)[::2])  # the others are to measure on
    if Path(name).suffix != ".jsonl":
        return (read_text(name),)
    return tuple(read_documents(name))


def _items(name: str, values: Any) -> Sequence[Any]:
    if not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise ExciseError(f"`{name}` is {shown(values)}: give a path, or a list")
    items = list(values)
    if not items:
        raise ExciseError(f"`{name}` is empty: give at least one")
    return items
