"""How likely given continuations are, and harmless sentences: a metric without a judge."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ...core.data import Sample, check_length
from ...core.errors import ExciseError
from ...core.loading import Loaded
from ...core.statistics import Statistic
from ...core.texts import text_hash
from ...eval.outcome import Metric, Outcome, Plan, Row, column
from ...eval.perplexity import Piece, piece_losses
from ...eval.probes import PROBES


STATISTICS = (
    Statistic("token_perplexity", "loss", "tokens", "exp", within=(1, math.inf)),
    Statistic("mean_loss", "mean_loss", within=(0, math.inf)),
)


@dataclass(frozen=True)
class Likelihood(Metric):
    """Perplexity of samples' continuations, behind what stands before them; a unit is a sample."""

    samples: Sequence[Sample]
    name: str
    batch_size: int = 16

    def plan(self, loaded: Loaded) -> Plan:
        """Check lengths.

        Raises:
            ExciseError: No samples, or one that is too long or has nothing to predict.
        """
        if not self.samples:
            raise ExciseError(f"{self.name}: there is no sample to measure")
        if bad := [s for s in self.samples if not 0 < s.continuation < len(s.input_ids)]:
            raise ExciseError(f"{self.name}: a sample of {len(bad[0].input_ids)} tokens has no "
                              "continuation behind its first token")  # fmt: skip
        check_length(self.samples, loaded.model.config)
        texts = [decoded_sample(loaded.tokenizer, sample) for sample in self.samples]
        return Plan(
            protocol="teacher-forced continuation, each alone",
            units=tuple(map(text_hash, texts)),
            inputs=self.samples,
            identity={"samples": [[list(s.input_ids), s.continuation] for s in self.samples]},
            tokens=self.batch_size * max(len(s.input_ids) for s in self.samples),
        )

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Sum the losses of each continuation, in nats."""
        starts = range(0, len(todo), self.batch_size)
        for start in tqdm(starts, self.name, unit="batch", disable=None if progress else True):
            part = todo[start : start + self.batch_size]
            pieces = [Piece(plan.inputs[i].input_ids, plan.inputs[i].continuation) for i in part]
            for index, loss in zip(part, piece_losses(loaded.model, pieces), strict=True):
                yield index, {"loss": loss, "tokens": plan.inputs[index].continuation}

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Make perplexity over all tokens, and the mean loss of a sample's token."""
        del loaded
        columns = {name: column(rows, name) for name in ("loss", "tokens")}
        columns["mean_loss"] = columns["loss"] / columns["tokens"]
        return [Outcome(self.name, plan.protocol, STATISTICS, plan.units, columns)]


def decoded_sample(tokenizer: Any, sample: Sample) -> str:
    """Return a sample's text, by which it is known again."""
    return tokenizer.decode(list(sample.input_ids), skip_special_tokens=True)


def prompt_of(tokenizer: Any, sample: Sample) -> str:
    """Return what stands before a sample's continuation; of a whole text, its first half."""
    head = sample.input_ids[: len(sample.input_ids) - sample.continuation]
    text = tokenizer.decode(list(head), skip_special_tokens=True).strip() if len(head) > 1 else ""
    if text:
        return text
    words = decoded_sample(tokenizer, sample).split()
    return " ".join(words[: max(1, len(words) // 2)])


def identity_likelihood(tokenizer: Any) -> Likelihood:
    """Return the likelihood of harmless sentences that name a group of people.

    A correction that makes them less likely has learnt to avoid the people, not the insult.
    """
    samples = []
    for text in PROBES["identity"].sentences:
        ids = tuple(tokenizer(text)["input_ids"])
        samples.append(Sample(ids, continuation=len(ids) - 1))
    return Likelihood(samples, "identity")
