"""How often a model prefers the right answer to the wrong one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core.data import Sample, batches, check_length
from ..core.families import family_of
from ..lrp.targets import LogitDifference
from .perplexity import Measure


@dataclass(frozen=True)
class Choice:
    """Accuracy and mean logit difference of answer against wrong answer."""

    accuracy: Measure
    logit_difference: Measure


def choice_accuracy(model: Any, samples: Sequence[Sample], batch_size: int = 16) -> Choice:
    """Compare the logits of answer and wrong answer behind each prompt.

    Args:
        model: A causal language model.
        samples: With `answer` and `wrong`.
        batch_size: Prompts per pass.

    Returns:
        Accuracy with Wilson's interval, and the mean logit difference with a normal one.

    Raises:
        ExciseError: A sample lacks one of the two answers, or is too long for the model.
    """
    check_length(samples, model.config)
    explicit = family_of(model).passes_position_ids
    found = []
    for batch in batches(samples, batch_size):
        batch = batch.to(model.device)
        with torch.no_grad():
            logits = model(**batch.model_inputs(explicit)).logits
        found.append(LogitDifference()(logits.float(), batch).cpu())
    differences = torch.cat(found).double()
    n, mean = len(differences), differences.mean().item()
    error = differences.std().item() / math.sqrt(n) if n > 1 else math.inf
    right = int((differences > 0).sum())
    protocol = "logit of the answer against the wrong answer, last token"
    return Choice(
        accuracy=Measure(right / n, wilson(right, n), n, protocol),
        logit_difference=Measure(mean, (mean - 1.96 * error, mean + 1.96 * error), n, protocol),
    )


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927): honest at 0 and 1."""
    p, denominator = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = centre - half, centre + half
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)
