"""How often a model prefers the right answer to the wrong one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from ..core.data import Prompt, Sample, batches, check_length, encode_prompts
from ..core.errors import ExciseError, finer
from ..core.families import family_of
from ..core.loading import Loaded
from ..core.statistics import Measure, Statistic
from ..core.texts import text_hash
from ..lrp.targets import LogitDifference
from .outcome import Metric, Outcome, Plan, Row, check_mode, column


STATISTICS = (
    Statistic("accuracy", "correct", better="higher", proportion=True),
    Statistic("logit_difference", "difference", better="higher"),
)

PROTOCOL = "logit of the answer against the wrong answer, last token"


@dataclass(frozen=True)
class Choice:
    """Accuracy and mean logit difference of answer against wrong answer."""

    accuracy: Measure
    logit_difference: Measure


@dataclass(frozen=True)
class TaskAccuracy(Metric):
    """Accuracy on a task of the circuits; a unit is a prompt."""

    task: str
    generate: Callable[[Any], Sequence[Prompt]]
    """Makes the prompts for a tokenizer."""
    batch_size: int = 16
    split: str = ""
    """Of the task's prompts, for the protocol."""
    name: str = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "name", f"tasks.{self.task}")

    def plan(self, loaded: Loaded) -> Plan:
        """Make and tokenise the prompts.

        Raises:
            ExciseError: An answer has several tokens, or a prompt is too long.
        """
        prompts = list({text_hash(p.clean): p for p in self.generate(loaded.tokenizer)}.values())
        samples = encode_prompts(loaded.tokenizer, prompts)
        check_length(samples, loaded.model.config)
        return Plan(
            protocol=f"{PROTOCOL}; prompts of split {self.split}" if self.split else PROTOCOL,
            units=tuple(text_hash(prompt.clean) for prompt in prompts),
            inputs=samples,
            identity={"samples": [[list(s.input_ids), s.answer, s.wrong] for s in samples]},
            tokens=self.batch_size * max(len(sample.input_ids) for sample in samples),
        )

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Compare the two answers' logits, prompt by prompt."""
        samples = [plan.inputs[index] for index in todo]
        found = logit_differences(loaded.model, samples, self.batch_size)
        bar = tqdm(found, self.name, len(todo), disable=None if progress else True)
        for index, difference in zip(todo, bar, strict=True):
            yield index, {"difference": difference}

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Count the prompts whose answer wins."""
        difference = column(rows, "difference")
        columns = {"difference": difference, "correct": (difference > 0).astype(float)}
        return [Outcome(self.name, plan.protocol, STATISTICS, plan.units, columns)]


def logit_differences(model: Any, samples: Sequence[Sample], batch_size: int) -> Iterator[float]:
    """Yield the logit of the answer less that of the wrong answer behind each prompt.

    Raises:
        ExciseError: A sample lacks one of the two answers, or the logits are NaN or infinite.
    """
    explicit = family_of(model).passes_position_ids
    for batch in batches(samples, batch_size):
        batch = batch.to(model.device)
        with torch.no_grad():
            logits = model(**batch.model_inputs(explicit)).logits
        found = LogitDifference()(logits.float(), batch)
        if not bool(found.isfinite().all()):
            raise ExciseError(f"the logits are NaN or infinite: {finer(logits.dtype)}")
        yield from found.tolist()


def choice_accuracy(model: Any, samples: Sequence[Sample], batch_size: int = 16) -> Choice:
    """Compare the logits of answer and wrong answer behind each prompt.

    Args:
        model: A causal language model.
        samples: With `answer` and `wrong`.
        batch_size: Prompts per pass.

    Returns:
        Accuracy with Wilson's interval, and the mean logit difference.

    Raises:
        ExciseError: A sample lacks one of the two answers, or is too long for the model, or the
            model is in training mode.
    """
    check_mode(model)
    check_length(samples, model.config)
    metric, loaded = TaskAccuracy("choice", lambda _: ()), Loaded(model, None, "")
    rows = [{"difference": d} for d in logit_differences(model, samples, batch_size)]
    plan = Plan(PROTOCOL, tuple(map(str, range(len(rows)))), samples, {})
    return Choice(**metric.outcomes(loaded, plan, rows)[0].measures)
