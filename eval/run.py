"""Measure a model: every metric, resumed where a killed run stopped."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError
from ..core.gguf import cache_folder
from ..core.identity import identity_of, tokenizer_hash
from ..core.loading import Loaded
from ..core.memory import readable
from ..core.provenance import NOT_TOLD, Seen, seen_in
from ..core.texts import near
from .outcome import Metric, Outcome, Plan, check_mode
from .store import Store


ROWS = 2
"""Raised whenever a metric's code changes what its rows hold, so that old ones are not used."""


@dataclass(frozen=True)
class Evaluation:
    """What was found on one model."""

    model: str
    model_hash: str
    tokenizer_hash: str
    outcomes: Mapping[str, Outcome]
    environment: Mapping[str, Any] = field(default_factory=dict)
    seen: Seen = NOT_TOLD
    """What is known of the texts that chose this model's edits."""

    def __getitem__(self, name: str) -> Outcome:
        """Return an outcome, as in `evaluation["perplexity"]`."""
        if name not in self.outcomes:
            known = ", ".join(self.outcomes) or "nothing"
            raise ExciseError(f"{self.model} was not measured for {name!r}, but for {known}")
        return self.outcomes[name]

    def reused(self) -> dict[str, int]:
        """Return per outcome how many of its prompts (or lines of text) chose the edit.

        Those that differ from such a text by next to nothing count; see `core.texts.near`.
        """
        counted = {
            name: len(near(outcome.known_by, self.seen.hashes))
            for name, outcome in self.outcomes.items()
        }
        return {name: count for name, count in counted.items() if count}


def evaluate(
    loaded: Loaded,
    metrics: Sequence[Metric],
    *,
    cache: Path | None = None,
    attribution: Collection[str] = (),
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure a model.

    Args:
        loaded: Model and tokenizer.
        metrics: What to measure; names must differ.
        cache: Folder of rows measured before, by content hash; see `default_cache`.
        attribution: Hashes of the texts that chose the model's edit, all of them. Where there are
            none, what the model's folder says counts, which adds to them in any case.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given the forecast, before anything is measured.

    Returns:
        One outcome per metric and judge.

    Raises:
        ExciseError: Something cannot be measured; nothing is left out silently.
    """
    started = time.perf_counter()
    plans = _plans(loaded, metrics)
    seen = seen_in(loaded.name) or NOT_TOLD
    if attribution:
        seen = Seen(seen.hashes.union(attribution))
    if tell:
        tell(_expected(loaded.model, plans))
    model, words = identity_of(loaded.model), tokenizer_hash(loaded.tokenizer)
    device = loaded.model.device.type  # it decides the last bits of every number
    outcomes: dict[str, Outcome] = {}
    kept = 0
    for metric, plan in plans:
        identity = {
            "rows": ROWS, **model, "tokenizer": words, "device": device, "metric": metric.name,
            "protocol": plan.protocol, "units": plan.units, **plan.identity,
        }  # fmt: skip
        store = Store(cache, identity)
        kept += len(store.rows)
        for outcome in _measured(loaded, metric, plan, store, progress):
            if outcome.name in outcomes:
                raise ExciseError(f"{outcome.name} was measured twice, by {metric.name} as well")
            outcomes[outcome.name] = outcome
    environment = {
        "versions": model["versions"],
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows_measured_before": kept,
        "seconds": round(time.perf_counter() - started, 3),
        "dtype": model["dtype"],
        "device": device,
    }
    return Evaluation(loaded.name, model["model"], words, outcomes, environment, seen)


def _measured(
    loaded: Loaded, metric: Metric, plan: Plan, store: Store, progress: bool
) -> list[Outcome]:
    todo = [index for index in range(len(plan.units)) if index not in store.rows]
    try:
        if todo:
            for index, row in metric.rows(loaded, plan, todo, progress):
                store.add(index, row)
    except KeyboardInterrupt:
        if not store.path:
            raise
        kept = f"{len(store.rows)} of {len(plan.units)} units of {metric.name} are kept"
        raise KeyboardInterrupt(f"{kept}: the same command goes on from there") from None
    if missing := [index for index in range(len(plan.units)) if index not in store.rows]:
        raise ExciseError(
            f"{metric.name}: {len(missing)} of {len(plan.units)} units were not measured"
        )
    return metric.outcomes(loaded, plan, [store.rows[i] for i in range(len(plan.units))])


def default_cache() -> Path:
    """Return where rows are kept: `eval` in `$EXCISE_CACHE`, or in `excise` in the user's cache."""
    return cache_folder() / "eval"


def forecast(loaded: Loaded, metrics: Sequence[Metric]) -> str:
    """Say what an evaluation is about to do and how much memory it takes at most, roughly.

    Counts weights, and for the largest pass its logits in the model's precision and in float32
    with their softmax; activations and buffers are smaller than these for most models.
    """
    return _expected(loaded.model, _plans(loaded, metrics))


def _plans(loaded: Loaded, metrics: Sequence[Metric]) -> list[tuple[Metric, Plan]]:
    names = [metric.name for metric in metrics]
    if not names or len(set(names)) < len(names):
        raise ExciseError(f"metrics {', '.join(names) or '(none)'}: name at least one, each once")
    check_mode(loaded.model)
    return [(metric, metric.plan(loaded)) for metric in metrics]


def _expected(model: Any, plans: Sequence[tuple[Metric, Plan]]) -> str:
    weights = sum(p.nbytes for p in model.parameters())
    tokens = max(plan.tokens for _, plan in plans)
    largest = tokens * model.config.vocab_size * (model.dtype.itemsize + 8)
    units = ", ".join(f"{metric.name} {len(plan.units)}" for metric, plan in plans)
    return (
        f"units: {units}; about {readable(weights + largest)} "
        f"({readable(weights)} of weights, {readable(largest)} for the largest pass)"
    )
