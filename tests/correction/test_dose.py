"""Doses: chosen under the budget, counted again by hand, stopped early, refused without a trace."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.generation import Decoding, complete
from excise.core.identity import model_hash
from excise.core.loading import Loaded
from excise.correction.data.recipes import toxicity_target
from excise.correction.dose import (
    BEYOND,
    BudgetError,
    check_budget,
    check_grid,
    choose_dose,
    guarded,
)
from excise.edits.edit import Edit
from excise.eval.paired import paired
from excise.eval.perplexity import Perplexity
from excise.eval.run import evaluate
from excise.eval.scorers import Scorer
from excise.tasks.ioi import ioi_prompts


WINDOW = 32
both = pytest.mark.parametrize("kind", ["llama-gqa", "opt"])


def shout(texts: list[str]) -> list[float]:
    """Score by a letter that both tiny models write now and then."""
    return [min(1.0, sum(c in "DBR" for c in text) / 4) for text in texts]


JUDGE = Scorer("letters", "letters", "words", shout)
TARGET = toxicity_target([JUDGE], Decoding(0, 6))


@dataclass(frozen=True)
class Bench:
    """A tiny model and what it is measured on."""

    loaded: Loaded
    prompts: list[str]
    text: Perplexity


@pytest.fixture
def bench(tiny: Any, tiny_tokenizer: Any) -> Any:
    """Return `bench(kind)`."""

    def made(kind: str) -> Bench:
        prompts = [p.clean for p in ioi_prompts(tiny_tokenizer, 16)]
        text = "\n".join(p.clean for p in ioi_prompts(tiny_tokenizer, 24, 1, "validation"))
        loaded = Loaded(tiny(kind), tiny_tokenizer, kind)
        return Bench(loaded, prompts, Perplexity([text], "window", WINDOW, 10))

    return made


def own_text(bench: Bench) -> Perplexity:
    """Return text of the model's own, as it is good at no other: there, any damage shows."""
    tokenizer, starts = bench.loaded.tokenizer, range(4, 14)
    prompts = [(1, word) for word in starts]
    decoding = Decoding(0, 20)
    found = dict(complete(bench.loaded.model, prompts, decoding, 10))
    texts = [tokenizer.decode([word, *found[i][0]]) for i, word in enumerate(starts)]
    return Perplexity(texts, "document", WINDOW)


HARM = Edit(heads={(layer, head): -8.0 for layer in range(2) for head in range(4)})


def cut(size: int, factor: float) -> Edit:
    return Edit(neurons={(i % 2, i // 2): factor for i in range(size)})


def by_hand(bench: Bench, edit: Edit) -> tuple[float, float]:
    """Return mean score and perplexity, without any of the code under test."""
    model, tokenizer = deepcopy(bench.loaded.model), bench.loaded.tokenizer
    edit.apply_(model)
    scores = []
    for prompt in bench.prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        start = ids.shape[1]
        for _ in range(6):
            with torch.no_grad():
                new = model(ids).logits[0, -1].argmax()
            if int(new) == 2:
                break
            ids = torch.cat([ids, new.view(1, 1)], 1)
        scores += shout([tokenizer.decode(ids[0, start:], skip_special_tokens=True)])
    text = bench.text.documents[0]
    ids = tokenizer(text)["input_ids"]
    total, n = 0.0, 0
    for at in range(0, WINDOW * 10, WINDOW):
        part = torch.tensor([ids[at : at + WINDOW]])
        with torch.no_grad():
            logs = model(part).logits.double().log_softmax(-1)
        for i in range(WINDOW - 1):
            total -= float(logs[0, i, part[0, i + 1]])
            n += 1
    return sum(scores) / len(scores), math.exp(total / n)


@both
def test_gain_and_cost_counted_again(bench: Any, kind: str):
    one = bench(kind)
    before = model_hash(one.loaded.model)
    lines: list[str] = []
    found = choose_dose(
        one.loaded, cut, TARGET, one.prompts, one.text,
        budget=3.0, sizes=(12, 3, 3), factors=(0.0, 0.5), tell=lines.append,
    )  # fmt: skip
    assert [(d.size, d.factor) for d in found.doses] == [(3, 0), (12, 0), (3, 0.5), (12, 0.5)]
    score, perplexity = by_hand(one, Edit())
    assert score > 0
    for dose in found.doses:
        assert isinstance(dose.factor, float)
        after = by_hand(one, cut(dose.size, dose.factor))
        assert dose.gain is not None
        assert dose.gain.value == pytest.approx(1 - after[0] / score, abs=1e-9)
        assert dose.cost.relative.value == pytest.approx(after[1] / perplexity - 1, rel=1e-4)
        assert dose.cost.bound >= dose.cost.relative.value
        assert dose.cost.within == (dose.cost.bound <= 3.0)
    assert model_hash(one.loaded.model) == before
    assert len(lines) == 4
    helping = [d for d in found.doses if d.cost.within and d.gain and d.gain.value > 0]
    best = max((d.gain.value for d in helping if d.gain), default=None)
    assert (found.chosen.gain.value if found.chosen and found.chosen.gain else None) == best
    rows = found.to_json()
    assert [row["chosen"] for row in rows].count(True) == (best is not None)


def test_the_bound_is_that_of_the_paired_windows(bench: Any):
    one = bench("opt")
    before = evaluate(one.loaded, [one.text])
    cost = check_budget(cut(4, 0.0), one.loaded, one.text, 9.0, before)
    with cut(4, 0.0).applied(one.loaded.model):
        after = evaluate(one.loaded, [one.text])
    statistic = before["perplexity"].statistics[0]
    columns = [dict(e["perplexity"].columns) for e in (before, after)]
    resampled = paired(statistic, columns[0], columns[1]).relative
    assert cost.bound == resampled.bound(0.95)
    assert cost.by == "bound"
    few = replace(one.text, limit=3)
    assert check_budget(cut(1, 0.5), one.loaded, few, 9.0).by == "estimate"


def test_the_budget_decides(bench: Any):
    one = bench("opt")
    options: dict[str, Any] = {"sizes": (1, 4, 12), "factors": (0.0,)}
    grown = choose_dose(one.loaded, cut, TARGET, one.prompts, one.text, budget=5.0, **options)
    bounds = [d.cost.decisive for d in grown.doses]
    for budget in sorted({0.0, *(max(0.0, b) for b in bounds)}):
        found = choose_dose(one.loaded, cut, TARGET, one.prompts, one.text, budget=budget,
                            **options)  # fmt: skip
        fitting = [d for d in found.doses if d.cost.decisive <= budget]
        gains = [d.gain.value for d in fitting if d.gain and d.gain.value > 0]
        assert (found.chosen is None) == (not gains)
        if found.chosen:
            assert found.chosen in fitting


def test_a_series_ends_far_beyond_the_budget(bench: Any):
    one = bench("llama-gqa")
    text = own_text(one)

    def make(size: int, factor: float) -> Edit:
        return HARM if size > 1 else Edit(neurons={(0, 0): 0.999})

    found = choose_dose(one.loaded, make, TARGET, one.prompts, text, budget=0.01,
                        sizes=(1, 2, 3, 4), factors=(0.0, 0.5))  # fmt: skip
    assert [(d.size, d.factor) for d in found.doses] == [(1, 0), (2, 0), (1, 0.5), (2, 0.5)]
    assert found.doses[1].cost.relative.value > BEYOND * 0.01


def test_a_model_without_the_behaviour_is_refused(bench: Any):
    one = bench("llama-gqa")
    silent = Scorer("never", "never", "words", lambda texts: [0.0] * len(texts))
    with pytest.raises(ExciseError, match=r"shows nothing of toxicity on 16 prompts") as error:
        choose_dose(one.loaded, cut, toxicity_target([silent], Decoding(0, 6)), one.prompts,
                    one.text, budget=1.0, sizes=(1,))  # fmt: skip
    assert "\n" not in str(error.value)


def test_an_edit_after_which_nothing_can_be_judged_is_no_gain(bench: Any):
    one, broken = bench("llama-gqa"), []

    def score(texts: list[str]) -> Sequence[float]:
        if broken:
            raise ValueError("no")
        return shout(texts)

    def make(size: int, factor: float) -> Edit:
        broken.append(size)
        return cut(size, factor)

    target = toxicity_target([Scorer("once", None, "python", score)], Decoding(0, 6))
    found = choose_dose(one.loaded, make, target, one.prompts, one.text, budget=9.0, sizes=(1, 2),
                        factors=(0.0,))  # fmt: skip
    assert found.chosen is None
    assert [(d.size, d.gain) for d in found.doses] == [(1, None)]
    assert "failed on text" in found.doses[0].note
    assert "failed on text" in found.table()[1][0][2]


@both
def test_the_guard_refuses_and_leaves_no_trace(bench: Any, kind: str):
    one = bench(kind)
    before = model_hash(one.loaded.model)
    text = own_text(one)
    message = r"refused: 8 components cost too much, perplexity \+"
    with (
        pytest.raises(BudgetError, match=message) as error,
        guarded(HARM, one.loaded, text, 0.01),
    ):
        raise AssertionError("entered")
    assert "\n" not in str(error.value)
    assert model_hash(one.loaded.model) == before
    mild = Edit(neurons={(0, 0): 1.0 - 1e-6})
    with guarded(mild, one.loaded, text, 0.01) as cost:
        assert model_hash(one.loaded.model) != before
        assert cost.within
    assert model_hash(one.loaded.model) == before


@pytest.mark.parametrize(
    ("sizes", "factors", "budget", "message"),
    [
        ((), (0.0,), 0.01, "sizes are"),
        ((0,), (0.0,), 0.01, "sizes are"),
        ((1,), (), 0.01, "factors are"),
        ((1,), (1.0,), 0.01, "factors are"),
        ((1,), (math.nan,), 0.01, "factors are"),
        ((1,), (0.0,), -0.1, "budget is -0.1"),
        ((1,), (0.0,), math.nan, "budget is nan"),
    ],
)
def test_grids_that_mean_nothing(sizes: Any, factors: Any, budget: float, message: str):
    with pytest.raises(ExciseError, match=message):
        check_grid(sizes, factors, budget)
