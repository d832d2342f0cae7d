"""What a correction will cost, before it is run: passes, memory, and seconds by a short trial."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.loading import Loaded
from ..core.memory import held_with, readable
from ..eval.outcome import Metric
from ..eval.run import forecast
from ..lrp.fitter import RelevanceFitter
from ..lrp.run import activation_bytes
from .data.material import CorrectionData
from .ranking.learned import PAIRS, TEXTS
from .ranking.sources import SEEDS
from .ranking.weights import MLP_MATRICES, matching


TRIAL = 128
"""Tokens of the pass that is timed."""
WRITTEN = 1.6
"""How much longer a token takes to write than to read, roughly: measured on a CPU."""
BATCH = 8
"""Samples that are attributed at a time."""
BACKWARD = 3.0
"""Forward and backward over forward alone."""


@dataclass(frozen=True)
class Plan:
    """Token passes by step, in units of one token read."""

    contrast: float
    dose: float
    test: float
    controls: float

    @property
    def total(self) -> float:
        """All steps."""
        return self.contrast + self.dose + self.test + self.controls


def plan_of(
    data: CorrectionData,
    *,
    new_tokens: int,
    windows: tuple[int, int],
    window: int,
    doses: int,
    controls: int,
    completions: int,
    steps: int,
    others: int,
) -> Plan:
    """Count the work.

    Args:
        data: What it is done with.
        new_tokens: Per completion; 0 where nothing is written.
        windows: Of text, for selection and test.
        window: Tokens of one.
        doses: Trials at most.
        controls: Random edits.
        completions: Samples per prompt, beside the greedy one.
        steps: In which factors are learned.
        others: Tokens of tasks and side effects.
    """
    written = WRITTEN * (new_tokens + 8) if new_tokens else 32.0
    parts = data.parts
    chosen = len(parts.selection) * written + windows[0] * window
    tested = len(parts.test) * written + windows[1] * window
    sample = BACKWARD * (new_tokens + 8)
    return Plan(
        contrast=len(parts.attribution) * ((1 + completions) * written + sample)
        + data.given * 2 * sample
        + BACKWARD * 4096
        + steps * (2 * PAIRS + TEXTS) * (sample + new_tokens + 8),
        dose=(1 + doses) * chosen,
        test=2 * (tested + others),
        controls=controls * tested,
    )


def attribution_bytes(model: Any, tokens: int, weights: bool, dtype: torch.dtype) -> int:
    """Count what ranking holds beside the model: a copy of it, activations of a batch, scores.

    Args:
        model: The live model.
        tokens: Of a sample.
        weights: Whether single weights are scored, of undesired, general and reference samples.
        dtype: What is ranked in; another than the model's takes a copy.
    """
    fitter = RelevanceFitter(
        model, SEEDS["logit"], components=() if weights else ("neurons",),
        weights=matching(model, MLP_MATRICES) if weights else (),
    )  # fmt: skip
    own = sum(p.nbytes for p in model.parameters())
    share = dtype.itemsize / model.dtype.itemsize
    copy = share * own if dtype != model.dtype else 0
    scores = 3 * 4 * sum(linear.weight.numel() for linear in fitter.linears.values())
    return round(copy + share * activation_bytes(fitter, BATCH * tokens)) + scores


def described(
    loaded: Loaded,
    plan: Plan,
    metrics: Sequence[Metric],
    data: CorrectionData,
    attribution: int,
) -> str:
    """Say in a few lines what a correction would do, how long and in how much memory.

    Args:
        loaded: The model.
        plan: The work.
        metrics: What the test measures.
        data: What it is done with.
        attribution: From `attribution_bytes`.
    """
    rate = seconds_per_token(loaded.model)
    ranking = held_with(loaded.model) + attribution
    parts = data.parts
    steps = ", ".join(
        f"{name} {_minutes(value * rate)}"
        for name, value in vars(plan).items()
    )  # fmt: skip
    return (
        f"{data.target.name}: {data.given + len(parts.attribution)} examples to attribute, "
        f"{len(parts.selection)} to select, {len(parts.test)} to test\n"
        f"test {forecast(loaded, metrics)}; ranking about {readable(ranking)}\n"
        f"about {_minutes(plan.total * rate)} on this machine as it is now: {steps}"
    )


def seconds_per_token(model: Any) -> float:
    """Time a short pass."""
    ids = torch.zeros(1, TRIAL, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=ids[:, :8], use_cache=False)
        started = time.perf_counter()
        model(input_ids=ids, use_cache=False)
    return (time.perf_counter() - started) / TRIAL


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
