"""Prompts in pairs: what the model reads, and the counterfactual that changes what decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.data import Batch, Prompt, Sample, check_length, collate, encode_prompts, fingerprint
from ..core.errors import ExciseError


@dataclass(frozen=True)
class Pairs:
    """Tokenised prompts with answer and wrong answer, each beside its counterfactual.

    A counterfactual has as many tokens as its prompt, so that positions correspond.
    """

    clean: tuple[Sample, ...]
    counterfactual: tuple[Sample, ...] | None = None

    def __post_init__(self):
        if not self.clean:
            raise ExciseError("there are no prompts: give at least one")
        for index, sample in enumerate(self.clean):
            if sample.answer is None or sample.wrong is None:
                raise ExciseError(
                    f"prompt {index} lacks an answer or a wrong one: circuits need both, since "
                    "they are measured by the difference of two logits"
                )
        for index, (one, other) in enumerate(zip(self.clean, self.counterfactual or (),
                                                 strict=bool(self.counterfactual))):  # fmt: skip
            if len(one.input_ids) != len(other.input_ids):
                raise ExciseError(
                    f"prompt {index} has {len(one.input_ids)} tokens and its counterfactual "
                    f"{len(other.input_ids)}: choose words of equal length in tokens"
                )

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, rows: slice) -> "Pairs":
        return Pairs(self.clean[rows], self.counterfactual and self.counterfactual[rows])

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(sample.input_ids) for sample in self.clean)

    @property
    def fingerprint(self) -> str:
        """A short hash of the prompts with their answers, then of the counterfactuals, if any."""
        parts = (self.clean, self.counterfactual)
        return "-".join(fingerprint(samples) for samples in parts if samples is not None)

    def batches(self, size: int, device: Any) -> Iterator[tuple[Batch, Batch | None]]:
        """Iterate over padded batches of prompts and of their counterfactuals."""
        for start in range(0, len(self), size):
            part = self[start : start + size]
            other = part.counterfactual
            yield (
                collate(part.clean).to(device),
                None if other is None else collate(other).to(device),
            )

    def check(self, config: Any) -> None:
        """Refuse prompts that are longer than a model can read.

        Raises:
            ExciseError: Names the longest.
        """
        check_length(self.clean, config)


def encode_pairs(tokenizer: Any, prompts: Sequence[Prompt]) -> Pairs:
    """Tokenise prompts and their counterfactuals.

    Args:
        tokenizer: A transformers tokenizer.
        prompts: With answer and wrong answer; all of them with a counterfactual, or none.

    Raises:
        ExciseError: An answer of several tokens, some counterfactuals but not all, or one of
            another length.
    """
    clean = tuple(encode_prompts(tokenizer, prompts))
    given = [prompt for prompt in prompts if prompt.counterfactual is not None]
    if not given:
        return Pairs(clean)
    if len(given) < len(prompts):
        raise ExciseError(
            f"{len(prompts) - len(given)} of {len(prompts)} prompts have no counterfactual: give "
            "all of them one, or none"
        )
    others = [replace(prompt, clean=prompt.counterfactual or "") for prompt in prompts]
    ids = [tuple(tokenizer(prompt.clean)["input_ids"]) for prompt in others]
    for prompt, own, other in zip(prompts, clean, ids, strict=True):
        if len(own.input_ids) != len(other):
            raise ExciseError(
                f"{prompt.clean[:60]!r} has {len(own.input_ids)} tokens and its counterfactual "
                f"{len(other)}: choose words of equal length in tokens"
            )
    return Pairs(clean, tuple(replace(s, input_ids=i) for s, i in zip(clean, ids, strict=True)))


def joined(batch: Batch, other: Batch) -> Batch:
    """Put the rows of another batch of the same width behind those of a batch."""
    both = zip(vars(batch).values(), vars(other).values(), strict=True)
    return Batch(*(None if a is None or b is None else torch.cat([a, b]) for a, b in both))  # type: ignore[arg-type]


def only_last(batch: Batch) -> Batch:
    """Return a batch as the logits of its last tokens alone see it: one position a row."""
    ids = batch.input_ids[torch.arange(len(batch), device=batch.input_ids.device), batch.last]
    return replace(batch, input_ids=ids[:, None], attention_mask=torch.ones_like(ids[:, None]))


def logit_difference(logits: Tensor, batch: Batch) -> Tensor:
    """Return the answer's logit less the wrong one's: (batch, 1, vocab) to (batch,)."""
    assert batch.answers is not None
    assert batch.wrongs is not None
    rows = torch.arange(len(batch), device=logits.device)
    last = logits[:, 0]
    return last[rows, batch.answers] - last[rows, batch.wrongs]
