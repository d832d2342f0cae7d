"""Skewed and rare damage as large as the bound seldom passes, or more units are asked for."""

import math
from typing import Any

import numpy as np
import pytest
from excise.core.bootstrap import LEVEL
from excise.core.statistics import Statistic
from excise.eval.gate import Check, check_gate
from excise.eval.outcome import Outcome
from excise.eval.paired import paired
from excise.eval.perplexity import STATISTICS
from excise.eval.policy import Rule, parse_policy
from excise.eval.rare import hidden, share_missed, units_needed
from excise.eval.run import Evaluation


MEAN = Statistic("mean", "x")
SCORE = Statistic("score", "x", within=(0, 1))
SHARE = Statistic("share", "x", proportion=True)


def decide(rule: dict[str, Any], before: Any, after: Any, statistic: Statistic = MEAN) -> Check:
    """Decide a rule on one column, or on losses of windows of 100 tokens."""
    models = []
    for name, values in (("a", before), ("b", after)):
        columns = {"x": np.asarray(values, float), "loss": 100 * np.asarray(values, float),
                   "tokens": np.full(len(values), 100.0)}  # fmt: skip
        units = tuple(map(str, range(len(values))))
        found = Outcome("perplexity", "how", (statistic,), units, columns)
        models.append(Evaluation(name, name, "", {"perplexity": found}))
    policy = parse_policy({"min_samples": 2, "perplexity": rule})
    return check_gate(policy, models[1], models[0]).checks[-1]


@pytest.mark.parametrize(("share", "n"), [(0.03, 99), (0.1, 29), (0.5, 5), (1.0, 1)])
def test_so_many_units_hold_one_of_a_share(share: float, n: int):
    assert units_needed(share, LEVEL) == n
    assert (1 - share) ** n <= 0.05 + 1e-12 < (1 - share) ** (n - 1) + 1e-12
    assert share_missed(n, LEVEL) <= share
    assert (1 - share_missed(n, LEVEL)) ** n == pytest.approx(0.05)


SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "exponential": lambda rng, n: rng.exponential(size=n) - 1,
    "lognormal": lambda rng, n: (rng.lognormal(size=n) - math.exp(0.5)) / 2.16,
    "rare": lambda rng, n: 5 * ((rng.random(n) < 0.03) - 0.03) + 0.2 * rng.normal(size=n),
}


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("shape", SHAPES)
def test_damage_as_large_as_the_bound_seldom_passes(shape: str, n: int):
    rng, times, shown, passed = np.random.default_rng(1), 200, 0, 0
    rule = Rule("perplexity", "max_increase", 0.0, False, 0.95, 2)
    for seed in range(times):
        x = rng.normal(3, 1, n)
        columns = {"x": x + 0.1 * SHAPES[shape](rng, n)}
        below = paired(MEAN, {"x": x}, columns, seed).difference.p_above(0) <= 0.05
        shown += below
        passed += below and hidden(MEAN, columns, rule) == (0, 0)
    assert passed <= (0.09 if n == 100 else 0) * times  # at most 5 %, and what chance may add
    assert shape == "rare" or shown <= 0.09 * times


@pytest.mark.parametrize("kind", ["max", "min", "max_increase", "max_decrease", "min_increase",
                                  "min_decrease"])  # fmt: skip
def test_every_rule_asks_for_more_units(kind: str):
    rng = np.random.default_rng(0)
    bound = {"max": 9, "min": 1}.get(kind, 1 if kind.startswith("max") else "1 %")
    shift = {"min_increase": 2, "min_decrease": -2}.get(kind, 0)
    for n, status in ((30, "inconclusive"), (100, "pass")):
        x = rng.normal(5, 0.1, n)
        check = decide({kind: bound}, x, x + shift + rng.normal(0, 0.01, n))
        assert (n, check.status) == (n, status), check.detail
    few = decide({kind: bound}, x[:30], x[:30] + shift)
    assert "30 units may hold none of a kind that is 9.5 % of all: measure 99" in few.detail
    assert "(rare: 10 %)" in few.detail
    assert decide({kind: bound, "rare": "10 %"}, x[:30], x[:30] + shift).status == "pass"


def test_equivalence_asks_for_more_units():
    rng = np.random.default_rng(0)
    rule = {"max_increase": "5 %", "equivalence": "95 %"}
    for n, status in ((60, "inconclusive"), (100, "pass")):
        x = rng.normal(5, 0.1, n)
        assert decide(rule, x, x + rng.normal(0, 0.01, n)).status == status


def test_scores_that_end_somewhere_can_be_off_by_so_much_only():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 0.9, 40)
    y = x - 0.4 + rng.normal(0, 0.02, 40)
    rule = Rule("toxicity", "min_decrease", 0.2, False, 0.95, 2)
    missed = 1 - 0.05 ** (1 / 40)
    low, high = hidden(SCORE, {"x": y}, rule)
    assert low == pytest.approx(missed * y.mean())
    assert high == pytest.approx(missed * (1 - y.mean()))
    assert decide({"min_decrease": 0.2}, x, y, SCORE).status == "pass"  # 0.4, less 0.05 unseen
    assert decide({"min_decrease": 0.37}, x, y, SCORE).status == "inconclusive"
    assert decide({"min_decrease": 0.37, "rare": 1}, x, y, SCORE).status == "pass"
    assert decide({"min_decrease": "30 %"}, x, y, SCORE).status == "pass"
    assert hidden(SHARE, {"x": np.ones(40)}, rule) == (0, 0)  # its tests count the unseen


def test_what_cannot_be_otherwise_is_shown():
    for bound in ({"max": 1}, {"min": 0}):
        x = np.array([0.1, 0.9, 0.2])
        assert decide(bound, x, x, SCORE).status == "pass"


def test_a_perplexity_ends_at_one():
    columns = {"loss": np.linspace(2, 4, 20) * 10, "tokens": np.full(20, 10.0)}
    rule = Rule("perplexity", "max_increase", 0.2, False, 0.95, 2)
    low, high = hidden(STATISTICS[0], columns, rule)
    missed = 1 - 0.05 ** (1 / 20)
    assert low == pytest.approx(math.exp(3) - math.exp(3 * (1 - missed)))
    assert high == math.inf
    x = np.linspace(2, 4, 60)
    rise = {"min_increase": "20 %"}
    assert decide(rule=rise, before=x, after=x + 1, statistic=STATISTICS[0]).status == "pass"
    assert decide(rise, x, x + 0.2, STATISTICS[0]).status == "inconclusive"
