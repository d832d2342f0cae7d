"""The behaviour that is to go, as something to measure on any prompts."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.errors import ExciseError
from ...core.statistics import Measure, Statistic
from ...core.texts import line_hashes, near, text_hash
from ...eval.compare import Comparison
from ...eval.outcome import Metric, Outcome
from ...eval.policy import RARE, Rule
from ...eval.run import Evaluation


@dataclass(frozen=True)
class Judgement:
    """One number that says how much of the behaviour there is."""

    outcome: str
    """As in `toxicity`, or `toxicity@NAME` for another scorer."""
    statistic: str
    wanted: Literal["lower", "higher"]
    """Which way it goes when the behaviour goes."""

    @property
    def name(self) -> str:
        """As in `toxicity.mean_toxicity`."""
        return f"{self.outcome}.{self.statistic}"

    def of(self, outcome: Outcome) -> Statistic:
        """Return the statistic as the outcome has it.

        Raises:
            ExciseError: It has none of this name.
        """
        named = {statistic.name: statistic for statistic in outcome.statistics}
        if self.statistic not in named:
            raise ExciseError(
                f"{self.outcome} has no statistic {self.statistic!r}: there are {', '.join(named)}"
            )
        return named[self.statistic]

    def compare(self, before: Evaluation, after: Evaluation) -> Comparison:
        """Pair the two models on it."""
        first = before[self.outcome]
        return Comparison(self.outcome, self.of(first), first, after[self.outcome])

    def gain(self, before: Evaluation, after: Evaluation) -> Measure:
        """Return the relative change, above 0 where the behaviour got less."""
        found = self.compare(before, after)
        relative = found.relative
        if self.wanted == "higher":
            return relative
        low, high = relative.ci
        return Measure(0.0 - relative.value, (-high, -low), relative.n, relative.protocol)

    def rule(self, bound: float, confidence: float, min_samples: int, rare: float = RARE) -> Rule:
        """Return the rule that it changes by at least a share, in the wanted direction."""
        kind = "min_increase" if self.wanted == "higher" else "min_decrease"
        section, _, scorer = self.outcome.partition("@")
        return Rule(section, kind, bound, True, confidence, min_samples, self.statistic,
                    scorer or None, rare=rare)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A behaviour, measured."""

    name: str
    """As in `toxicity`."""
    metric: Callable[[Sequence[Any]], Metric]
    """Makes the metric for prompts, or for whatever shows the behaviour."""
    judge: Judgement
    """What selects, and what is claimed."""
    second: Judgement | None = None
    """What has no part in selecting."""

    def check_shown(self, before: Evaluation) -> None:
        """Refuse a model that does not show the behaviour: there is nothing to remove.

        Raises:
            ExciseError: The judge's number is 0 where it should go down.
        """
        outcome = before[self.judge.outcome]
        value = outcome.measures[self.judge.of(outcome).name].value
        if value == 0 and self.judge.wanted == "lower":
            raise ExciseError(
                f"{before.model} shows nothing of {self.name} on {len(outcome.units)} prompts "
                f"({self.judge.name} is 0): give prompts that provoke it, or another judge"
            )


def split_documents(
    documents: Sequence[str], seen: Iterable[str] = (), share: float = 0.3
) -> tuple[list[str], list[str]]:
    """Split text into what selects and what tests, without a line in common.

    The beginning selects. A line of the rest that occurs there or among `seen`, or nearly so, is
    left out.

    Args:
        documents: In order.
        seen: Hashes of lines that were used for other things.
        share: Of the lines that select.

    Raises:
        ExciseError: Nothing is left to test on.
    """
    lines = [line for text in documents for line in [*text.split("\n"), ""]]
    at = round(share * len(lines))
    selection = "\n".join(lines[:at])
    test = unseen("\n".join(lines[at:]), {*seen, *line_hashes(selection)})
    if not test.strip() or not selection.strip():
        whole, chosen, rest, kept = (
            sum(bool(line.strip()) for line in part)
            for part in (lines, lines[:at], lines[at:], test.split("\n"))
        )
        raise ExciseError(
            f"the text for perplexity has {whole} lines that were not used already, of which "
            f"{chosen} select; of the other {rest} {kept} are new and left to test on: give "
            "another text, or one of more lines"
        )
    return [selection], [test]


def unseen(text: str, seen: Collection[str]) -> str:
    """Return a text without the lines that were seen, or are near those that were."""
    hashes = [line_hashes(line) for line in text.split("\n")]
    again = near({one for line in hashes for one in line}, seen)
    kept = zip(text.split("\n"), hashes, strict=True)
    return "\n".join(line for line, own in kept if not again.intersection(own))


def hashes_of(texts: Iterable[str]) -> frozenset[str]:
    """Return the hashes by which texts are known again, whole and line by line."""
    found: set[str] = set()
    for text in texts:
        found.add(text_hash(text))
        found.update(line_hashes(text))
    return frozenset(found)
