"""What passes, fails and stays open, on data whose effect is known."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from excise.core.provenance import Seen
from excise.core.statistics import Statistic
from excise.eval.compare import Comparison
from excise.eval.gate import Check, Gate, check_gate
from excise.eval.outcome import Outcome
from excise.eval.policy import Rule, parse_policy
from excise.eval.run import Evaluation


N = 100
MEAN = Statistic("mean", "x")
SHARE = Statistic("share", "x", better="higher", proportion=True)
NOISE = np.random.default_rng(0).normal(size=(2, N))
NOISE -= NOISE.mean(1, keepdims=True)
NOISE /= NOISE.std(1, keepdims=True)

JUDGED = {"toxicity": {"max": 1, "scorer": "b", "statistic": "mean"}}


def outcome(values: Any, statistic: Statistic = MEAN, name: str = "perplexity",
            **more: Any) -> Outcome:  # fmt: skip
    columns = {"x": np.asarray(values, float)}
    units = tuple(map(str, range(len(columns["x"]))))
    return Outcome(**{"name": name, "protocol": "how", "statistics": (statistic,),
                      "units": units, "columns": columns, **more})  # fmt: skip


def evaluation(name: str, *outcomes: Outcome, chosen: frozenset[str] = frozenset()) -> Evaluation:
    found = {o.name: o for o in outcomes}
    return Evaluation(name, f"weights of {name}", "tokenizer", found, {}, Seen(chosen))


def decided(policy: Any, candidate: Evaluation, baseline: Evaluation | None = None) -> Any:
    """Return the status of each rule by name, and the whole."""
    gate = check_gate(parse_policy(policy), candidate, baseline)
    return {check.name: check for check in gate.checks}, gate


def one(bounds: Any, after: Any, before: Any = None, statistic: Statistic = MEAN) -> Check:
    """Decide a policy of one rule on one outcome."""
    baseline = None if before is None else evaluation("a", outcome(before, statistic))
    candidate = evaluation("b", outcome(after, statistic))
    checks, gate = decided({"perplexity": bounds}, candidate, baseline)
    (kind,) = set(bounds) - {"min_samples"}
    assert gate.passed == checks[f"perplexity.{kind}"].passed
    return checks[f"perplexity.{kind}"]


@pytest.mark.parametrize(("kind", "kept", "broken"), [("max", 9.0, 11.0), ("min", 11.0, 9.0)])
def test_levels(kind: str, kept: float, broken: float):
    expected = {kept: "pass", 10.0: "inconclusive", broken: "fail"}
    for level, status in expected.items():
        check = one({kind: 10}, level + NOISE[0])
        assert check.status == status
        assert f"mean {level:.2f} [" in check.detail
        assert "10 at 95 %" in check.detail


@pytest.mark.parametrize("bound", [0.5, "5 %"])
@pytest.mark.parametrize(
    ("kind", "kept", "at", "broken"),
    [
        ("max_increase", [0, -1, 0.4], 0.5, [0.6, 2]),
        ("max_decrease", [0, 1, -0.4], -0.5, [-0.6, -2]),
        ("min_increase", [0.6, 2], 0.5, [0.4, 0, -1]),
        ("min_decrease", [-0.6, -2], -0.5, [-0.4, 0, 1]),
    ],
)
def test_changes(kind: str, bound: Any, kept: list[float], at: float, broken: list[float]):
    before = 10 + NOISE[0]
    for statuses, shifts in (("pass", kept), ("inconclusive", [at]), ("fail", broken)):
        for shift in shifts:
            check = one({kind: bound}, before + shift + 0.1 * NOISE[1], before)
            assert (shift, check.status) == (shift, statuses)
            told = f"mean {10 * shift:+.2f} % [" if bound == "5 %" else f"mean {shift:+.3g} ["
            assert told in check.detail


def test_noise_leaves_it_open():
    before = 10 + NOISE[0]
    for kind in ("max_increase", "max_decrease", "min_increase", "min_decrease"):
        assert one({kind: 0.5}, before + 8 * NOISE[1], before).status == "inconclusive"
        assert one({kind: 0}, before + 0.1 * NOISE[1], before).status == "inconclusive"


@pytest.mark.parametrize(
    ("shift", "noise", "status"),
    [(0, 0.1, "pass"), (0.4, 0.1, "pass"), (-0.4, 0.1, "pass"), (0.5, 0.1, "inconclusive"),
     (0.7, 0.1, "fail"), (-0.7, 0.1, "fail"), (0, 8, "inconclusive")],
)  # fmt: skip
def test_equivalence(shift: float, noise: float, status: str):
    before = 10 + NOISE[0]
    candidate = evaluation("b", outcome(before + shift + noise * NOISE[1]))
    bounds = {"max_increase": "5 %", "equivalence": "95 %"}
    checks, _ = decided({"perplexity": bounds}, candidate, evaluation("a", outcome(before)))
    assert checks["perplexity.equivalence"].status == status
    assert (checks["perplexity.max_increase"].status == "pass") == (status == "pass" or shift < 0)


@pytest.mark.parametrize(("kind", "share"), [("max", 0.0), ("min", 1.0)])
@pytest.mark.parametrize("n", [30, 100, 1000])
def test_no_proportion_passes_for_free(kind: str, share: float, n: int):
    for distance in (0, 0.001, 0.01, 0.03, 0.1):
        check = one({kind: abs(share - distance)}, np.full(n, share), statistic=SHARE)
        unseen = (1 - distance) ** n  # how likely nothing is seen where the bound is the truth
        assert (n, distance, check.status) == (n, distance, "pass" if unseen <= 0.05 else
                                               "inconclusive")  # fmt: skip


def test_proportions_are_decided_by_the_exact_test():
    for successes in range(41):  # one-sided to pass, two-sided to be an alarm
        x = np.arange(40) < successes
        tail = [math.comb(40, k) * 0.3**k * 0.7 ** (40 - k) for k in range(41)]
        below, above = sum(tail[: successes + 1]), sum(tail[successes:])
        status = "pass" if below <= 0.05 else "fail" if above <= 0.025 else "inconclusive"
        assert one({"max": 0.3}, x, statistic=SHARE).status == status
        status = "pass" if above <= 0.05 else "fail" if below <= 0.025 else "inconclusive"
        assert one({"min": 0.3}, x, statistic=SHARE).status == status
    assert one({"min": 2}, np.ones(40), statistic=SHARE).status == "inconclusive"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_change_of_few_prompts_is_no_proof(share: float):
    few, many = np.full(40, share), np.full(1000, share)
    for kind in ("max_increase", "max_decrease"):
        assert one({kind: 0.01}, few, few, SHARE).status == "inconclusive"
        assert one({kind: 0.2}, few, few, SHARE).status == "pass"
        assert one({kind: 0.01}, many, many, SHARE).status == "pass"
    assert one({"max_increase": "5 %"}, few * 0, few * 0, SHARE).status == "inconclusive"
    for kind in ("min_increase", "min_decrease"):
        assert not one({kind: 0}, many, many, SHARE).passed
        assert not one({kind: "0 %"}, many, many, SHARE).passed


def test_the_first_confident_alarm_of_many_is_no_failure():
    before, after = 10 + NOISE[0], 10.5 + NOISE[0] + NOISE[1]
    found = Comparison("o", MEAN, outcome(before), outcome(after)).paired.difference
    bound = found.bound(0.02)  # broken at p = 0.02
    assert one({"max_increase": bound}, after, before).status == "fail"
    checks, _ = decided(
        {"perplexity": {"max_increase": bound, "max": 20, "min": 1}},
        evaluation("b", outcome(after)), evaluation("a", outcome(before)),
    )  # fmt: skip
    assert checks["perplexity.max_increase"].status == "inconclusive"


def test_confidence_is_that_of_the_policy():
    before, after = 10 + NOISE[0], 10 + NOISE[0] + NOISE[1]
    bound = Comparison("o", MEAN, outcome(before), outcome(after)).paired.difference.bound(0.93)
    for confidence, status in (("90 %", "pass"), ("95 %", "inconclusive")):
        policy = {"confidence": confidence, "perplexity": {"max_increase": bound}}
        checks, _ = decided(policy, evaluation("b", outcome(after)),
                            evaluation("a", outcome(before)))  # fmt: skip
        assert checks["perplexity.max_increase"].status == status
        assert checks["perplexity.max_increase"].detail.count(f"at {confidence}") == 1


def test_falling_below_zero_is_a_decrease():
    check = one({"max_decrease": "10 %"}, -20 + NOISE[1], -10 + NOISE[0])
    assert check.status == "fail"
    assert "mean -100" in check.detail


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (
            {"perplexity": {"max": 5, "min_samples": 101}},
            "100 samples are too few: the rule asks",
        ),
        ({"min_samples": 101, "perplexity": {"max": 5}}, "100 samples are too few"),
        ({"repetition": {"max": 5}}, "b was not measured for 'repetition', but for perplexity"),
        ({"accuracy": {"max": 5}}, r"b was not measured for 'tasks.*'"),
        ({"tasks": {"ioi": {"max": 5}}}, "b was not measured for 'tasks.ioi'"),
        ({"zero_shot": {"max_decrease": 5}}, "b was not measured for 'zero_shot.*'"),
        (
            {"perplexity": {"max": 5, "statistic": "median"}},
            "no statistic 'median': there are mean",
        ),
        (JUDGED, "b was not measured for 'toxicity@b'"),
        ({"perplexity": {"max_increase": 5}}, "a change needs a model to compare with"),
        ({"perplexity": {"min_decrease": "5 %"}}, "a change needs a model to compare with"),
    ],
)
def test_what_cannot_be_decided_is_an_error(policy: Any, told: str):
    _, gate = decided(policy, evaluation("b", outcome(NOISE[0])))
    (check,) = (c for c in gate.checks if c.name != "held_out")
    assert check.status == "error"
    assert told in check.detail
    assert not gate.passed


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (outcome(NOISE[0], units=tuple(map(str, range(1, N + 1)))), "other units"),
        (outcome(NOISE[0], protocol="other"), "in another way"),
        (outcome(NOISE[0], Statistic("mean", "x", scale=2)), "share no statistic"),
        (outcome(NOISE[0], name="other"), "a was not measured for 'perplexity'"),
    ],
)
def test_what_cannot_be_paired_is_an_error(before: Outcome, told: str):
    checks, gate = decided({"perplexity": {"max_increase": 5}},
                           evaluation("b", outcome(NOISE[0])), evaluation("a", before))  # fmt: skip
    assert checks["perplexity.max_increase"].status == "error"
    assert told in checks["perplexity.max_increase"].detail
    assert not gate.passed


def test_broken_numbers_are_an_error():
    for value in (math.nan, math.inf):
        broken = NOISE[0].copy()
        broken[3] = value
        for kind in ("min", "max"):
            assert one({kind: 0}, broken).status == "error"
        for kind in ("max_increase", "max_decrease", "min_increase"):
            assert one({kind: 0}, broken, NOISE[0]).status == "error"


def test_equal_weights_are_an_error():
    found, policy = outcome(10 + NOISE[0]), {"perplexity": {"max": 20}}
    same = evaluation("a", found)
    checks, gate = decided(policy, same, same)
    assert checks["edited"].status == "error"
    assert "nothing was edited" in checks["edited"].detail
    assert checks["perplexity.max"].passed
    assert not gate.passed
    assert decided(policy, evaluation("b", found), same)[1].passed


def test_prompts_that_chose_the_edit_are_an_error():
    found, policy = outcome(10 + NOISE[0]), {"perplexity": {"max": 20}}
    fresh = evaluation("b", found, chosen=frozenset(["x", "y"]))
    checks, gate = decided(policy, fresh)
    assert checks["held_out"].detail.startswith("none of the 2 prompts and lines")
    assert gate.passed
    checks, gate = decided(policy, evaluation("b", found, chosen=frozenset(["x", "3", "5"])))
    assert checks["held_out"].status == "error"
    assert "(2 of 100 of perplexity)" in checks["held_out"].detail
    assert not gate.passed


def test_judges_are_told_apart():
    made = [
        outcome(value + NOISE[0] / 9, name=name, facts={"scorer": scorer})
        for value, name, scorer in ((0.2, "toxicity", "a"), (9.0, "toxicity@b", "b"))
    ]
    candidate = evaluation("b", outcome(NOISE[0]), *made)
    for scorer, name, status in (("a", "toxicity", "pass"), ("b", "toxicity@b", "fail"),
                                 ("c", "toxicity@c", "error")):  # fmt: skip
        checks, _ = decided({"toxicity": {"max": 1, "scorer": scorer}}, candidate)
        assert checks[f"{name}.max"].status == status
    checks, _ = decided({"perplexity": {"max": 1, "scorer": "a"}}, candidate)
    assert checks["perplexity@a.max"].status == "error"  # it has no judge


def test_every_task_is_bound():
    tasks = [outcome(np.arange(N) < k, SHARE, f"tasks.{name}") for name, k in (("a", 97), ("b", 9))]
    policy = {"accuracy": {"min": 0.8}}
    checks, gate = decided(policy, evaluation("b", outcome(NOISE[0]), *tasks))
    assert {name: c.status for name, c in checks.items() if name != "held_out"} == {
        "tasks.a.min": "pass", "tasks.b.min": "fail",
    }  # fmt: skip
    checks, gate = decided(policy, evaluation("b", tasks[0]), evaluation("a", *tasks))
    assert checks["tasks.b.min"].status == "error"  # left out where it failed before
    assert not gate.passed


def test_without_a_rule_nothing_passes():
    gate = check_gate([], evaluation("b", outcome(NOISE[0])))
    assert "no rule" in gate.checks[-1].detail
    assert not gate.passed
    assert not Gate("b", ()).passed


def test_checks_read_well():
    check = one({"max": 10}, 9 + NOISE[0])
    assert str(check).startswith("PASS          perplexity.max: mean 9.00 [8.8")


def test_identical_models_seldom_fail_and_seldom_improve():
    rng, seen, times = np.random.default_rng(3), Counter(), 150
    rules = [Rule("perplexity", "max_increase", 0.0, False, 0.95, 30, rare=1),
             Rule("perplexity", "min_decrease", 0.0, True, 0.95, 30, rare=1)]  # fmt: skip
    for _ in range(times):
        level = rng.beta(0.6, 2.0, 40)
        first, second = (
            evaluation(name, outcome(np.clip(level + rng.normal(0, 0.2, 40), 0, 1)))
            for name in "ab"
        )
        for rule in rules:
            seen[rule.kind, check_gate([rule], second, first).checks[-1].status] += 1
    for kind in ("max_increase", "min_decrease"):  # 5 % and 2.5 %, and what chance may add
        assert seen[kind, "pass"] <= 0.09 * times
        assert seen[kind, "fail"] <= 0.06 * times
        assert seen[kind, "inconclusive"] >= 0.85 * times
