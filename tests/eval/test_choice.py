"""Accuracy on tasks against plain loops."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.data import Prompt, Sample, encode_prompts
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.core.statistics import estimate, wilson
from excise.core.texts import text_hash
from excise.eval.choice import TaskAccuracy, choice_accuracy
from excise.eval.outcome import Outcome
from excise.eval.run import evaluate
from excise.tasks.ioi import ioi_prompts


def slow_differences(model: Any, samples: list[Sample]) -> list[float]:
    differences = []
    for sample in samples:
        with torch.no_grad():
            last = model(torch.tensor([sample.input_ids])).logits[0, -1].double()
        differences.append(float(last[sample.answer] - last[sample.wrong]))
    return differences


def task(model: Any, tokenizer: Any, prompts: list[Prompt], batch_size: int = 16) -> Outcome:
    metric = TaskAccuracy("mine", lambda _: prompts, batch_size)
    return evaluate(Loaded(model, tokenizer, "tiny"), [metric])["tasks.mine"]


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "opt-350m"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_choice_equals_a_plain_loop(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str, batch_size: int
):
    model, prompts = tiny(kind), ioi_prompts(tiny_tokenizer, 11)
    samples = encode_prompts(tiny_tokenizer, prompts)
    assert len({len(sample.input_ids) for sample in samples}) > 1  # so that batches are padded
    differences = slow_differences(model, samples)
    right = sum(difference > 0 for difference in differences)
    assert 0 < right < 11
    found = choice_accuracy(model, samples, batch_size)
    assert found.accuracy.value == right / 11
    assert found.accuracy.ci == wilson(right, 11)
    mean = sum(differences) / 11
    assert found.logit_difference.value == pytest.approx(mean, abs=1e-5)
    half = 2.228 * np.std(differences, ddof=1) / math.sqrt(11)  # Student's t, 10 degrees
    low, high = found.logit_difference.ci
    assert half <= (high - low) / 2 <= 2.5 * half  # the bootstrap-t, which sees their skew
    same = task(model, tiny_tokenizer, prompts, batch_size)
    assert same.columns["difference"].tolist() == pytest.approx(differences, abs=1e-5)
    assert same.measures == {
        "accuracy": found.accuracy,
        "logit_difference": found.logit_difference,
    }
    assert same.units == tuple(text_hash(prompt.clean) for prompt in prompts)


def test_a_tie_is_not_right(tiny_llama: Any):
    samples = [Sample((1, 2, 3), answer=4, wrong=4)] * 3
    assert choice_accuracy(tiny_llama, samples).accuracy.value == 0


def test_each_prompt_counts_once(tiny_opt: Any, tiny_tokenizer: Any):
    prompts = ioi_prompts(tiny_tokenizer, 4)
    found = task(tiny_opt, tiny_tokenizer, [*prompts, prompts[2]])
    assert found.units == task(tiny_opt, tiny_tokenizer, prompts).units
    assert found.headline.n == 4


def test_the_headline_is_the_accuracy_and_higher_is_better(tiny_opt: Any, tiny_tokenizer: Any):
    found = task(tiny_opt, tiny_tokenizer, ioi_prompts(tiny_tokenizer, 12))
    assert found.headline == found.measures["accuracy"]
    assert all(statistic.better == "higher" for statistic in found.statistics)
    second = estimate(found.statistics[1], dict(found.columns))
    assert found.measures["logit_difference"].ci == second.interval()


def test_choice_needs_both_answers_and_room(tiny_opt: Any, tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match="wrong"):
        choice_accuracy(tiny_opt, [Sample((1, 2, 3), answer=4)])
    with pytest.raises(ExciseError, match="10000 tokens"):
        choice_accuracy(tiny_opt, [Sample((1,) * 10_000, answer=4, wrong=5)])
    with pytest.raises(ExciseError, match="nothing to resample"):
        choice_accuracy(tiny_opt, [])
    with pytest.raises(ExciseError, match="no prompts"):
        task(tiny_opt, tiny_tokenizer, [])
    with pytest.raises(ExciseError, match="601 tokens is longer"):
        task(tiny_opt, tiny_tokenizer, [Prompt("cat " * 600, None, "John", "Mary")])
    with pytest.raises(ExciseError, match="unknown to the tokenizer"):
        task(tiny_opt, tiny_tokenizer, [Prompt("the", None, "elephant", "Mary")])
    single = choice_accuracy(tiny_opt, [Sample((1, 2, 3), answer=4, wrong=5)])
    assert single.logit_difference.ci == (-math.inf, math.inf)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_models_that_cannot_be_measured(tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str):
    model, prompts = tiny(kind), ioi_prompts(tiny_tokenizer, 3)
    samples = encode_prompts(tiny_tokenizer, prompts)
    with pytest.raises(ExciseError, match="training mode"):
        choice_accuracy(model.train(), samples)
    with torch.no_grad():
        next(model.eval().parameters())[:] = math.nan
    with pytest.raises(ExciseError, match="NaN or infinite"):
        choice_accuracy(model, samples)
    with pytest.raises(ExciseError, match="NaN or infinite"):
        task(model, tiny_tokenizer, prompts)
