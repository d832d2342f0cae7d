"""Perplexity in the protocol of the pruning literature."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from ..core.data import Sample, collate
from ..core.errors import ExciseError
from ..core.families import family_of


@dataclass(frozen=True)
class Measure:
    """A measured value with its uncertainty and the protocol that gave it."""

    value: float
    ci: tuple[float, float]
    """95 % confidence interval."""
    n: int
    """Independent units behind it: windows, prompts."""
    protocol: str

    def __str__(self) -> str:
        return f"{_short(self.value)} [{_short(self.ci[0])}, {_short(self.ci[1])}]"


def perplexity(
    model: Any,
    tokenizer: Any,
    text: str,
    window: int = 1024,
    limit: int | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Measure:
    """Measure perplexity over non-overlapping windows.

    One tokenizer call over the whole text, `floor(tokens / window)` windows one at a time, and the
    exponential of the mean loss over each window's `window - 1` next tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: The text.
        window: Tokens per window.
        limit: Use only the first windows.
        seed: Of the bootstrap over windows (1,000 resamples).
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        The perplexity; the interval says how it would vary with other windows of such text.

    Raises:
        ExciseError: The text is shorter than one window, or the model's loss is not finite.
    """
    if window < 2:
        raise ExciseError(f"window is {window}: give at least 2 tokens")
    if limit is not None and limit < 1:
        raise ExciseError(f"limit is {limit}: give at least 1 window")
    most = getattr(model.config, "max_position_embeddings", window)
    if window > most:
        raise ExciseError(f"window {window} is longer than the model's {most} positions")
    ids = tokenizer(text, verbose=False)["input_ids"]
    n = min(len(ids) // window, limit or len(ids))
    if n < 1:
        raise ExciseError(f"the text has {len(ids)} tokens, less than one window of {window}")
    explicit = family_of(model).passes_position_ids
    losses = []
    for index in tqdm(
        range(n), desc="perplexity", unit="window", disable=None if progress else True
    ):
        batch = collate([Sample(tuple(ids[index * window : (index + 1) * window]))])
        inputs = batch.to(model.device).model_inputs(explicit)
        with torch.no_grad():
            logits = model(**inputs).logits[0, :-1].float()
        labels = batch.input_ids[0, 1:].to(logits.device)
        losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
    if not all(map(math.isfinite, losses)):
        raise ExciseError(
            "the loss is NaN or infinite: the model is broken, or needs --dtype float32"
        )
    return Measure(
        value=_exp(losses),
        ci=bootstrap(losses, _exp, seed),
        n=n,
        protocol=f"window={window}, non-overlapping, batch 1, token perplexity",
    )


def bootstrap(
    values: Sequence[float], statistic: Any, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic of resampled values."""
    draw = random.Random(seed)
    found = sorted(statistic(draw.choices(values, k=len(values))) for _ in range(resamples))
    return found[int(0.025 * resamples)], found[int(0.975 * resamples) - 1]


def _exp(losses: Sequence[float]) -> float:
    return math.exp(min(sum(losses) / len(losses), 700.0))  # a broken model is 1e304, no overflow


def _short(value: float) -> str:
    size = abs(value)
    return f"{value:.2f}" if size < 100 else f"{value:.0f}" if size < 1e5 else f"{value:.2e}"
