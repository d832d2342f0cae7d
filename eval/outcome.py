"""What every metric is, and what it finds: per-unit values, kept, and the numbers they make."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..core.bootstrap import Values
from ..core.errors import ExciseError
from ..core.loading import Loaded
from ..core.statistics import Measure, Statistic, measure


Row = dict[str, Any]
"""What one unit gave: JSON values by name, kept in the cache."""


@dataclass(frozen=True)
class Plan:
    """A metric made ready for one model: what will be measured, before anything is."""

    protocol: str
    """What was measured and how, in words that stand beside the number."""
    units: tuple[str, ...]
    """Hash of each unit's text; equal texts have equal hashes, whatever the model."""
    inputs: Sequence[Any]
    """What the metric needs per unit: token ids, prompts."""
    identity: Mapping[str, Any]
    """Everything else the rows depend on, besides model and units; JSON values."""
    tokens: int = 0
    """Tokens in the largest pass at once, for the memory forecast."""


@dataclass(frozen=True)
class Outcome:
    """What one metric found on one model."""

    name: str
    """As in `perplexity`, `toxicity`, `repetition`, `tasks.ioi`, `zero_shot.arc_easy`."""
    protocol: str
    statistics: tuple[Statistic, ...]
    """What is reported, the headline first."""
    units: tuple[str, ...]
    columns: Mapping[str, Values]
    """Per-unit values by name, in the order of `units`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a reader must know: the scorer and its limits, how many completions were empty."""
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Per-unit texts, which may offend: never written anywhere unless asked for."""
    compared: frozenset[str] | None = None
    """Hashes of the texts by which reuse is noticed; those of the units if there are none."""
    seed: int = 0

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Every statistic with its interval, by name."""
        return {s.name: measure(s, dict(self.columns), self.protocol, self.seed)
                for s in self.statistics}  # fmt: skip

    def per_unit(self, statistic: Statistic) -> Values:
        """Return what a statistic would be on each unit alone."""
        above, below = statistic.quotient(dict(self.columns))
        return statistic.linked(above / below)

    @property
    def known_by(self) -> frozenset[str]:
        """Hashes by which the texts measured are known again."""
        return frozenset(self.units) if self.compared is None else self.compared

    @property
    def headline(self) -> Measure:
        """The first statistic."""
        return self.measures[self.statistics[0].name]


class Metric(ABC):
    """Something to measure on a model.

    `plan` reads and tokenises; `rows` computes what is missing, unit by unit, so that a killed
    evaluation goes on; `outcomes` turns rows into columns and statistics.
    """

    name: str

    @abstractmethod
    def plan(self, loaded: Loaded) -> Plan:
        """Make ready; refuse what cannot be measured, before any work is done."""

    @abstractmethod
    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Measure the units with these indices, in any order."""

    @abstractmethod
    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Make the outcomes of all rows, which are in the order of the plan's units.

        There is one, unless several judges look at the same rows.
        """


def check_mode(model: Any) -> None:
    """Refuse a model in training mode.

    Raises:
        ExciseError: Its dropout would make every number a random one.
    """
    if model.training:
        raise ExciseError("the model is in training mode, with dropout: call model.eval() first")


def column(rows: Sequence[Row], name: str) -> Values:
    """Return one number of each row."""
    return np.array([row[name] for row in rows], dtype=np.float64)
