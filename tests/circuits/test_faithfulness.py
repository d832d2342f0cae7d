"""Faithfulness, CPR, CMD, rankings, controls: against examples computed by hand."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from excise.circuits.ablation import Ablator
from excise.circuits.faithfulness import FRACTIONS, Outcome, Trial, area, jaccard, sizes
from excise.circuits.levels import LEVELS, Ranking, Shape, get_level, matched_random
from excise.circuits.pairs import Pairs
from excise.core.data import Sample
from excise.core.errors import ExciseError
from excise.core.families import ModelView
from hypothesis import given
from hypothesis import strategies as st


def trial(full: list[float], empty: list[float]) -> Trial:
    """Make a trial without a model, from what its two ends answer."""
    made = Trial.__new__(Trial)
    made.full, made.empty = outcome(full), outcome(empty)
    made.ablator = SimpleNamespace(ablation="resample")  # type: ignore[assignment]
    return made


def outcome(differences: list[float]) -> Outcome:
    return Outcome(np.array(differences), np.zeros(len(differences)))


def test_faithfulness_is_a_ratio_of_means():
    # means 4, 1 and 2.5: (2.5 - 1) / (4 - 1); the mean of ratios would be another number
    made = trial(full=[2.0, 6.0], empty=[1.0, 1.0])
    assert made.score(outcome([2.0, 3.0])) == pytest.approx(0.5)
    assert made.faithfulness(outcome([2.0, 3.0])).value == pytest.approx(0.5)
    assert made.score(made.full) == 1.0
    assert made.score(made.empty) == 0.0


def test_cpr_and_cmd_by_hand():
    made = trial(full=[1.0, 1.0], empty=[0.0, 0.0])
    fractions = (0.1, 0.5, 1.0)
    outcomes = [outcome([f, f]) for f in (0.0, 1.5, 1.0)]
    found = made.areas(fractions, outcomes)
    # f: 0.4 * (0 + 1.5) / 2 + 0.5 * (1.5 + 1) / 2; |1 - f|: 0.4 * (1 + .5) / 2 + 0.5 * .5 / 2
    assert found.cpr.value == pytest.approx(0.925)
    assert found.cmd.value == pytest.approx(0.425)
    assert found.cpr.ci == pytest.approx((0.925, 0.925))  # both prompts are alike


def test_a_perfect_circuit_has_the_areas_that_mib_says():
    assert area(FRACTIONS, [1.0] * len(FRACTIONS)) == pytest.approx(0.999)
    assert sizes(300) == [0, 0, 1, 3, 6, 15, 30, 60, 150, 300]


def test_intervals_are_wider_where_prompts_differ():
    made = trial(full=[1.0] * 40, empty=[0.0] * 40)
    steady = made.faithfulness(outcome([0.5] * 39 + [0.52]))
    mixed = made.faithfulness(outcome([0.1, 0.9] * 20))
    assert steady.ci[1] - steady.ci[0] < 0.03 < mixed.ci[1] - mixed.ci[0]
    assert mixed.ci[0] < 0.5 < mixed.ci[1]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(0, 35), st.booleans())
def test_a_ranking_takes_exactly_k_and_the_highest(values: list[int], k: int, by_abs: bool):
    scores = torch.tensor(values, dtype=torch.float)
    chosen = Ranking(scores, "abs" if by_abs else "signed").top(k)
    assert int(chosen.sum()) == min(k, len(values))
    seen = scores.abs() if by_abs else scores
    if bool(chosen.any()) and not bool(chosen.all()):
        assert seen[chosen].min() >= seen[~chosen].max()
    ties = (seen == seen[chosen].min()).nonzero()[:, 0] if bool(chosen.any()) else torch.empty(0)
    assert chosen[ties.long()].int().diff().le(0).all()  # of equal scores, the first


@given(st.integers(0, 2**32 - 1))
def test_controls_have_the_same_profile(seed: int):
    groups = torch.arange(60) % 7
    chosen = torch.rand(60, generator=torch.Generator().manual_seed(seed)) < 0.3
    drawn = matched_random(chosen, groups, seed)
    for group in range(7):
        assert int(drawn[groups == group].sum()) == int(chosen[groups == group].sum())
    assert torch.equal(drawn, matched_random(chosen, groups, seed))


def test_overlap():
    one, other = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    assert jaccard(one, other) == pytest.approx(1 / 3)
    assert jaccard(one & other, ~one & ~other) == 0.0
    assert jaccard(~one & one, ~one & one) == 1.0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_every_grain_counts_names_and_groups_its_components(
    tiny: Callable[..., Any], kind: str, level: str
):
    shape, grain = Shape.of(ModelView.of(tiny(kind))), get_level(level)
    n = grain.count(shape)
    assert len(grain.groups(shape)) == n
    names = grain.names(shape)
    assert len(names) == n == len(set(names))
    chosen = torch.rand(n) < 0.5
    assert torch.equal(grain.flat(shape, grain.kept(shape, chosen)), chosen)


@pytest.mark.parametrize("level", LEVELS)
def test_the_ends_of_the_scale_are_runs(
    tiny_opt: Any, make_pairs: Callable[..., Pairs], level: str
):
    made = Trial(Ablator(tiny_opt, make_pairs(), "zero"), get_level(level))
    n = get_level(level).count(made.shape)
    assert made.value(torch.ones(n, dtype=torch.bool)) == pytest.approx(1.0, abs=1e-4)
    assert made.value(torch.zeros(n, dtype=torch.bool)) == pytest.approx(0.0, abs=1e-4)
    assert made.full.kl == pytest.approx(0.0, abs=1e-6)
    assert (made.empty.kl > 1e-4).all()


def test_divergence_is_that_of_the_next_token(tiny_llama: Any, make_pairs: Callable[..., Pairs]):
    pairs = make_pairs((6,))
    made = Trial(Ablator(tiny_llama, pairs), get_level("nodes"))
    assert pairs.counterfactual is not None
    chances = [
        tiny_llama(torch.tensor([ids.input_ids])).logits[0, -1].detach().double().softmax(0)
        for ids in (pairs.clean[0], pairs.counterfactual[0])
    ]
    # nothing kept but the prompt's own embedding: not the counterfactual, so measured apart
    edges = Trial(Ablator(tiny_llama, pairs), get_level("edges"))
    expected = (chances[0] * (chances[0].log() - chances[1].log())).sum()
    assert edges.empty.kl[0] == pytest.approx(float(expected), rel=1e-4)
    assert made.empty.kl[0] != pytest.approx(float(expected), rel=1e-2)


def test_prompts_that_change_nothing_are_refused(tiny_llama: Any):
    sample = Sample((5, 6, 7), answer=8, wrong=9)
    with pytest.raises(ExciseError, match="the same when every component is replaced"):
        Trial(Ablator(tiny_llama, Pairs((sample,), (sample,))), get_level("nodes"))
