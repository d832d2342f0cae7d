"""Batched text generation whose random choices belong to the prompt, not to the batch.

Each completion has its own random numbers, seeded by its prompt and its number. Drawing a token is
the argmax of log-probability plus Gumbel noise (Gumbel 1954; the "Gumbel-max trick"), so it is an
exact sample, and two models that sample the same completion share their noise: an edit that changes
little changes few tokens, and the difference is measured with less noise of its own.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from .data import Sample, collate
from .errors import ExciseError


@dataclass(frozen=True)
class Decoding:
    """How completions are made."""

    completions: int = 25
    """Sampled completions per prompt; 0 is one greedy completion."""
    new_tokens: int = 20
    temperature: float = 1.0
    top_p: float = 0.9
    """Nucleus sampling (Holtzman et al. 2020): the fewest tokens that hold this probability."""
    seed: int = 0

    def __post_init__(self):
        if self.completions < 0:
            raise ExciseError(f"completions is {self.completions}: give 0 (greedy) or more")
        if self.new_tokens < 1:
            raise ExciseError(f"new_tokens is {self.new_tokens}: give at least 1")
        if not 1e-3 <= self.temperature < math.inf:  # NaN, too
            raise ExciseError(f"temperature is {self.temperature}: give at least 0.001, or 0 "
                              "completions for greedy ones")  # fmt: skip
        if not 0 < self.top_p <= 1:
            raise ExciseError(f"top_p is {self.top_p}: give more than 0 and at most 1")

    @property
    def per_prompt(self) -> int:
        """How many completions each prompt gets."""
        return max(1, self.completions)

    def __str__(self) -> str:
        if self.completions == 0:
            return f"greedy, {self.new_tokens} new tokens"
        return (
            f"{self.completions} samples, {self.new_tokens} new tokens, "
            f"temperature {self.temperature:g}, top-p {self.top_p:g}, seed {self.seed}"
        )


def complete(
    model: Any, prompts: Sequence[tuple[int, ...]], decoding: Decoding, batch_size: int
) -> Iterator[tuple[int, list[list[int]]]]:
    """Complete prompts.

    Args:
        model: A causal language model.
        prompts: Token ids of each.
        decoding: How; the batch size changes nothing but the last bits of the logits.
        batch_size: Completions per pass, of one prompt or of several.

    Yields:
        The prompt's index and the token ids of its completions, without what ends them; prompts
        come shortest first.

    Raises:
        ExciseError: The model's logits are NaN or infinite.
    """
    shortest = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    queue = [(index, k) for index in shortest for k in range(decoding.per_prompt)]
    found: dict[int, list[list[int]]] = {}
    for start in range(0, len(queue), batch_size):
        part = queue[start : start + batch_size]
        noise = [_generator(prompts[index], k, decoding.seed) for index, k in part]
        grown = _grow(model, [prompts[index] for index, _ in part], decoding, noise)
        for (index, _), ids in zip(part, grown, strict=True):
            found.setdefault(index, []).append(ids)
            if len(found[index]) == decoding.per_prompt:
                yield index, found.pop(index)


def _generator(prompt: tuple[int, ...], number: int, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {number} {prompt}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _grow(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    decoding: Decoding,
    noise: Sequence[torch.Generator],
) -> list[list[int]]:
    batch = collate([Sample(ids) for ids in prompts], side="left").to(model.device)
    ends = end_tokens(model)
    config = GenerationConfig(
        max_new_tokens=decoding.new_tokens,
        do_sample=False,  # the processor below draws; what is left is an argmax
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        use_cache=True,
    )
    chosen = _Draw(decoding, noise)
    with torch.no_grad(), _plain_defaults(model):
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([chosen]),
        )
    width = batch.input_ids.shape[1]
    return [_until(row, ends) for row in ids[:, width:].tolist()]


@contextmanager
def _plain_defaults(model: Any) -> Iterator[None]:
    """Keep a checkpoint's own settings out, which `generate` takes for all that is not set.

    Chat checkpoints come with sampling, penalties and suppressed tokens.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(model: Any) -> list[int]:
    """Return the tokens that end a completion; there may be none."""
    ids = model.generation_config.eos_token_id
    ids = model.config.eos_token_id if ids is None else ids
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    return next((ids[:i] for i, token in enumerate(ids) if token in ends), ids)


class _Draw(LogitsProcessor):
    """Adds to each row the noise that makes its argmax a sample; adds none for greedy ones."""

    def __init__(self, decoding: Decoding, noise: Sequence[torch.Generator]):
        self.decoding, self.noise = decoding, noise

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        sampled = self.decoding.completions > 0
        scores = scores.float() / self.decoding.temperature if sampled else scores
        if not bool(scores.isfinite().all()):
            raise ExciseError(
                "the model's logits are NaN or infinite: it is broken, or its --dtype too coarse"
            )
        if not sampled:
            return scores
        scores = nucleus(scores, self.decoding.top_p)
        uniform = torch.stack([torch.rand(scores.shape[1], generator=row) for row in self.noise])
        uniform.clamp_(min=torch.finfo(uniform.dtype).tiny)  # else a nucleus of one token can lose
        return scores - (-uniform.to(scores.device).log()).log()


def nucleus(
    logits: Float[Tensor, "batch vocab"], top_p: float, head: int = 512
) -> Float[Tensor, "batch vocab"]:
    """Set all logits outside the nucleus to minus infinity.

    The nucleus is the fewest most likely tokens that together have at least probability `top_p`.
    It is looked for among the `head` most likely tokens first, as sorting a vocabulary is slow.
    """
    if top_p >= 1:
        return logits
    total = logits.logsumexp(1, keepdim=True)
    top = logits.topk(min(head, logits.shape[1]), dim=1).values
    if bool(((top - total).exp().sum(1) < top_p).any()):
        top = logits.sort(dim=1, descending=True).values
    mass = (top - total).exp().cumsum(1)
    last = (mass < top_p).sum(1, keepdim=True).clamp(max=top.shape[1] - 1)
    return logits.masked_fill(logits < top.gather(1, last), float("-inf"))
