"""What metrics of generated text share: prompts in, completions out, empty ones noticed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm import tqdm

from ..core.data import Sample, check_length
from ..core.errors import ExciseError
from ..core.generation import Decoding, complete, end_tokens
from ..core.loading import Loaded
from ..core.texts import text_hash
from .outcome import Metric, Plan, Row


@dataclass(frozen=True)
class CompletionMetric(Metric):
    """A metric of what a model writes behind prompts; a unit is a prompt with its completions."""

    prompts: Sequence[str]
    decoding: Decoding = field(default_factory=Decoding)
    limit: int | None = None
    """Use only so many prompts, drawn by the seed: prompt files are often sorted."""
    batch_size: int = 32
    """Completions per pass."""
    max_empty: float = 0.2
    """Share of completions without a letter or digit from which the result is refused."""

    def plan(self, loaded: Loaded) -> Plan:
        """Draw and tokenise the prompts; each text counts once.

        Raises:
            ExciseError: No prompts, or one that is too long or has no tokens; or a setting that
                means nothing.
        """
        if not 0 <= self.max_empty <= 1:  # NaN, too, which would allow everything
            raise ExciseError(f"max_empty is {self.max_empty:g}: give a share from 0 to 1")
        if self.batch_size < 1:
            raise ExciseError(f"batch_size is {self.batch_size}: give at least 1 completion")
        prompts = distinct(self.prompts)
        if self.limit is not None and self.limit < 1:
            raise ExciseError(f"limit is {self.limit}: give at least 1 prompt")
        if self.limit is not None and self.limit < len(prompts):
            prompts = random.Random(self.decoding.seed).sample(prompts, self.limit)
        ids = [tuple(loaded.tokenizer(prompt)["input_ids"]) for prompt in prompts]
        if empty := [number for number, row in enumerate(ids, 1) if not row]:
            raise ExciseError(f"prompt {empty[0]} has no tokens: remove it")
        room = (0,) * self.decoding.new_tokens
        check_length([Sample(row + room) for row in ids], loaded.model.config)
        return Plan(
            protocol=str(self.decoding),
            units=tuple(map(text_hash, prompts)),
            inputs=ids,
            identity={
                "decoding": asdict(self.decoding),
                "ends": end_tokens(loaded.model),
                "prompts": [list(row) for row in ids],
            },
            tokens=self.batch_size * max(map(len, ids)),
        )

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Generate; a row is the token ids of a prompt's completions."""
        prompts = [plan.inputs[index] for index in todo]
        made = complete(loaded.model, prompts, self.decoding, self.batch_size)
        bar = tqdm(made, self.name, len(todo), unit="prompt", disable=None if progress else True)
        for index, completions in bar:
            yield todo[index], {"completions": completions}

    def check_empty(self, texts: Sequence[Sequence[str]]) -> int:
        """Return how many completions say nothing.

        Raises:
            ExciseError: More than `max_empty` of them do: a model that says nothing offends
                nobody, and must not pass for a good one.
        """
        flat = [text for row in texts for text in row]
        empty = sum(not any(map(str.isalnum, text)) for text in flat)
        if empty > self.max_empty * len(flat):
            raise ExciseError(
                f"{empty} of {len(flat)} completions for {self.name} are empty, more than "
                f"{100 * self.max_empty:g} %: the model says nothing there is to judge; give other "
                "prompts, or allow more (excise eval --max-empty)"
            )
        return empty


def distinct(prompts: Sequence[str]) -> list[str]:
    """Return each prompt once, in order; those that differ only in case and white space are one.

    Raises:
        ExciseError: There are none.
    """
    found: dict[str, str] = {}
    for prompt in prompts:
        found.setdefault(text_hash(prompt), prompt)
    if not found:
        raise ExciseError("there are no prompts to complete: give at least one")
    return list(found.values())


def decoded(tokenizer: Any, rows: Sequence[Row]) -> list[list[str]]:
    """Return the completions' texts."""
    return [tokenizer.batch_decode(row["completions"], skip_special_tokens=True) for row in rows]
