"""What is explained: functions from logits to one value per sample.

A target is any callable `(logits (batch, seq, vocab), batch) -> values (batch,)`; relevance is
propagated from the sum of the values. The classes here are the named ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ..core.data import Batch
from ..core.errors import ExciseError, look_up


Target = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Answer:
    """The logit, or log-probability, of the answer at the last token."""

    log_probability: bool = False

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        last = _at_last(logits, batch)
        if self.log_probability:
            last = last.log_softmax(-1)
        return _pick(last, _needed(batch.answers, "an answer"))


@dataclass(frozen=True)
class LogitDifference:
    """The logit of the answer less that of the wrong answer, at the last token."""

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        last = _at_last(logits, batch)
        answers, wrongs = _needed(batch.answers, "an answer"), _needed(batch.wrongs, "a wrong one")
        return _pick(last, answers) - _pick(last, wrongs)


@dataclass(frozen=True)
class Token:
    """The logit, or log-probability, of given tokens at a given position.

    Attributes:
        tokens: One token id for all samples, or one per sample; their order is the batch's.
        position: As an index into the row without its padding; -1 is the last token.
    """

    tokens: int | tuple[int, ...]
    position: int = -1
    log_probability: bool = False

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        lengths = batch.attention_mask.sum(1)
        offset = self.position if self.position >= 0 else lengths + self.position
        position = batch.first + offset
        if bool(((position < batch.first) | (position > batch.last)).any()):
            raise ExciseError(
                f"position {self.position} is outside a sample of {int(lengths.min())} tokens"
            )
        at = logits[torch.arange(len(batch), device=logits.device), position]
        if self.log_probability:
            at = at.log_softmax(-1)
        ids = torch.as_tensor(self.tokens, device=logits.device).expand(len(batch))
        return _pick(at, ids)


@dataclass(frozen=True)
class NextTokens:
    """Every next token at once: the sum over positions of its log-probability (or logit)."""

    log_probability: bool = True

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        wanted = batch.attention_mask[:, :-1] * batch.attention_mask[:, 1:]
        return _next(logits, batch, wanted, self.log_probability)


@dataclass(frozen=True)
class Continuation:
    """The log-probability of the teacher-forced continuation."""

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        return _next(logits, batch, _needed(batch.continuation, "a continuation")[:, 1:], True)


TARGETS: dict[str, Target] = {
    "logit": Answer(),
    "logprob": Answer(log_probability=True),
    "logit-difference": LogitDifference(),
    "continuation": Continuation(),
    "next-tokens": NextTokens(),
    "next-tokens-logit": NextTokens(log_probability=False),
}
"""The named targets, for the command line."""

SUMMARIES: dict[str, str] = {
    "logit": "logit of the answer, at the last token",
    "logprob": "log-probability of the answer, at the last token",
    "logit-difference": "logit of the answer less that of the wrong one, at the last token",
    "continuation": "log-probability of the whole answer, teacher-forced",
    "next-tokens": "log-probability of every next token at once",
    "next-tokens-logit": "logit of every next token at once",
}


def get_target(name: str) -> Target:
    """Return a named target.

    Raises:
        ExciseError: No target has this name.
    """
    return look_up("target", name, TARGETS)


def _at_last(logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, "b v"]:
    return logits[torch.arange(len(batch), device=logits.device), batch.last]


def _pick(logits: Float[Tensor, "b v"], ids: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    return logits.gather(1, ids[:, None])[:, 0]


def _next(
    logits: Float[Tensor, "b t v"], batch: Batch, wanted: Tensor, log_probability: bool
) -> Float[Tensor, " b"]:
    """Sum over the wanted positions, (b, t - 1), what each says of the token behind it."""
    wanted = functional.pad(wanted, (0, 1))  # the last position has no next token
    ids = batch.input_ids.roll(-1, 1)
    if log_probability:  # whole rows of logits, not a shifted copy of them
        values = -functional.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
    else:
        values = logits.gather(2, ids[..., None])
    return (values.view(ids.shape) * wanted).sum(1)


def _needed(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise ExciseError(f"this target needs {what} for every sample: add it, or choose another")
    return value
