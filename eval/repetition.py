"""Repetition in what a model writes, on prompts of our own that provoke it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..core.generation import Decoding
from ..core.loading import Loaded
from ..core.statistics import Statistic
from .completions import CompletionMetric, decoded
from .outcome import Outcome, Plan, Row, column


REPETITIVE = 0.5
"""Unique-token ratio below which a completion counts as repetitive (SparC3, section 4.3)."""

STATISTICS = (
    Statistic("unique_token_ratio", "unique_token_ratio", better="higher", within=(0, 1)),
    Statistic("distinct_2", "distinct_2", better="higher", within=(0, 1)),
    Statistic("distinct_3", "distinct_3", better="higher", within=(0, 1)),
    Statistic("longest_repeat", "longest_repeat", within=(0, math.inf)),
    Statistic("repetitive", "repetitive", proportion=True, within=(0, 1)),
    Statistic("length", "length", better="higher", within=(0, math.inf)),
)

PROMPTS = (
    "Row, row, row,",
    "Never, never, never,",
    "Tick, tock, tick, tock,",
    "One two, one two, one two,",
    "The drum went boom, boom, boom,",
    "He knocked and knocked and knocked and",
    "On and on and on and",
    "They walked for miles and miles and",
    "Round and round the wheel goes, round and",
    "The rain fell, and the rain fell, and",
    "She said no, and no, and no again:",
    "Again and again the bell rang:",
    "La la la la",
    "Ha ha ha ha",
    "Left, right, left, right,",
    "Up and down, up and down,",
    "The song has only one line, and it goes:",
    "The chorus repeats the same words:",
    "Repeat after me:",
    "The teacher made him write the same sentence a hundred times:",
    "The parrot knew three words and kept saying",
    "The machine printed the same line all night:",
    "The list reads: apple, apple, apple,",
    "Monday, Monday, Monday,",
    "A rose is a rose is a",
    "Home is home is home is",
    "What will be will be, and what will be",
    "There is a hole in the bucket. Then mend it. With what? There is",
    "I know that you know that I know that",
    "This is the house that Jack built. This is the",
    "Because I said so. Why? Because I said so. Why?",
    "Are we there yet? No. Are we there yet?",
    "Please, please, please,",
    "Go, go, go,",
    "Run, run, as fast as you can, run,",
    "Wait, wait, wait,",
    "Time is something that",
    "Hope is something that",
    "The sea is the sea, and the sky is",
    "0 1 0 1 0 1 0 1",
    "a b c a b c a b c",
    "yes yes yes yes",
)
"""Written for this project; none is taken from a published set."""


@dataclass(frozen=True)
class Repetition(CompletionMetric):
    """How much completions repeat themselves."""

    prompts: Sequence[str] = PROMPTS
    decoding: Decoding = field(default_factory=lambda: Decoding(completions=0, new_tokens=50))
    name: str = field(default="repetition", init=False)

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Average each prompt's completions.

        Raises:
            ExciseError: Too many completions are empty.
        """
        texts = decoded(loaded.tokenizer, rows)
        facts = {"empty": self.check_empty(texts), "repetitive_below": REPETITIVE}
        measured = [[repetition(ids) for ids in row["completions"]] for row in rows]
        means = [
            {s.of: sum(m[s.of] for m in row) / len(row) for s in STATISTICS} for row in measured
        ]
        columns = {s.of: column(means, s.of) for s in STATISTICS}
        statistics = STATISTICS
        if self.decoding.per_prompt > 1:  # then a prompt is no longer a yes or a no
            statistics = tuple(replace(s, proportion=False) for s in STATISTICS)
        return [Outcome(self.name, plan.protocol, statistics, plan.units, columns, facts)]


def repetition(tokens: Sequence[int] | Sequence[str]) -> dict[str, float]:
    """Measure how much one text repeats itself.

    Args:
        tokens: Token ids, or words.

    Returns:
        `unique_token_ratio`, `distinct_2`, `distinct_3` (unique n-grams over n-grams, 1 where there
        are none; Li et al. 2016), `longest_repeat` (tokens in a row that occur once more, without
        overlap), `repetitive` (1 or 0) and `length`.
    """
    unique = distinct_n(tokens, 1)
    return {
        "unique_token_ratio": unique,
        "distinct_2": distinct_n(tokens, 2),
        "distinct_3": distinct_n(tokens, 3),
        "longest_repeat": float(longest_repeat(tokens)),
        "repetitive": float(unique < REPETITIVE),
        "length": float(len(tokens)),
    }


def distinct_n(tokens: Sequence[int] | Sequence[str], n: int) -> float:
    """Return the share of n-grams that are unique, 1 where there are none (Li et al. 2016)."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(tokens: Sequence[int] | Sequence[str]) -> int:
    """Return the length of the longest span that occurs twice without overlapping itself."""
    n, best = len(tokens), 0
    before = [0] * (n + 1)  # before[j]: how far the spans that end at i - 1 and j - 1 agree
    for i in range(1, n + 1):
        now = [0] * (n + 1)
        for j in range(i + 1, n + 1):
            if tokens[i - 1] == tokens[j - 1]:
                now[j] = min(before[j - 1] + 1, j - i)
                best = max(best, now[j])
        before = now
    return best
