"""Policies: every rule, every way to write one wrong, and nothing dropped."""

from pathlib import Path
from typing import Any

import pytest
from excise.core.errors import ExciseError
from excise.eval.policy import BOUNDS, Rule, parse_policy, read_policy


def policy(tmp_path: Path, text: str) -> list[Rule]:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return read_policy(path)


def test_a_whole_policy(tmp_path: Path):
    found = policy(tmp_path, """\
confidence: 90 %
min_samples: 50
perplexity:
  max_increase: 1 %
  equivalence: 0.95
toxicity: {scorer: profanity, statistic: mean_toxicity, min_decrease: 20.5 %, max: 0.4}
repetition: {max_decrease: .5, min_samples: 10}
accuracy: {max_decrease: 0.02, min: 90 %}
zero_shot: {arc_easy: {max_decrease: 1e-2}, boolq: {min_increase: 0}}
""")  # fmt: skip
    judged: dict[str, Any] = {"statistic": "mean_toxicity", "scorer": "profanity"}
    assert set(found) == {
        Rule("perplexity", "max_increase", 0.01, True, 0.9, 50),
        Rule("perplexity", "equivalence", 0.01, True, 0.95, 50),
        Rule("toxicity", "min_decrease", 0.205, True, 0.9, 50, **judged),
        Rule("toxicity", "max", 0.4, False, 0.9, 50, **judged),
        Rule("repetition", "max_decrease", 0.5, False, 0.9, 10),
        Rule("tasks.*", "max_decrease", 0.02, False, 0.9, 50),
        Rule("tasks.*", "min", 0.9, False, 0.9, 50),
        Rule("zero_shot.arc_easy", "max_decrease", 0.01, False, 0.9, 50),
        Rule("zero_shot.boolq", "min_increase", 0.0, False, 0.9, 50),
    }
    assert len(found) == 9
    assert str(found[0]) == "perplexity.max_increase 1 % at 90 %"


@pytest.mark.parametrize("kind", BOUNDS)
def test_every_rule_has_both_units(kind: str):
    (plain,) = parse_policy({"perplexity": {kind: 0.25}})
    (share,) = parse_policy({"perplexity": {kind: "25 %"}})
    assert plain == Rule("perplexity", kind, 0.25, False, 0.95, 30)
    relative = kind not in ("max", "min")  # 25 % of what? a share, as of an accuracy
    assert share == Rule("perplexity", kind, 0.25, relative, 0.95, 30)


@pytest.mark.parametrize(
    ("value", "bound", "relative"),
    [(0, 0, False), (1, 1, False), ("1%", 0.01, True), (" 1.5  % ", 0.015, True), ("+2", 2, False),
     ("0 %", 0, True), ("3.", 3, False), ("2e-3", 0.002, False), ("150 %", 1.5, True)],
)  # fmt: skip
def test_amounts(value: Any, bound: float, relative: bool):
    (rule,) = parse_policy({"toxicity": {"max_increase": value}})
    assert (rule.bound, rule.relative) == (pytest.approx(bound), relative)


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        None,
        "-1 %",
        -0.1,
        "abc",
        "1 %%",
        "%",
        "",
        "1,5",
        "NaN",
        "Inf",
        float("nan"),
        float("inf"),
        [1],
        {"a": 1},
    ],
)
@pytest.mark.parametrize("kind", ["max", "max_increase", "min_decrease"])
def test_amounts_that_are_none(kind: str, value: Any):
    with pytest.raises(ExciseError, match=rf"repetition\.{kind} is .*: give"):
        parse_policy({"repetition": {kind: value}})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "the policy is None"),
        ([], r"the policy is \[\]"),
        ("perplexity", "the policy is 'perplexity'"),
        ({}, "there is no rule in it, so it would let everything pass"),
        ({"confidence": 0.9, "min_samples": 30}, "no rule in it"),
        ({"perplexty": {"max": 1}}, "unknown section 'perplexty': did you mean 'perplexity'"),
        ({3: {"max": 1}}, "unknown section '3'"),
        ({"perplexity": {"max_incraese": 1}}, "unknown rule in perplexity 'max_incraese': did"),
        ({"perplexity": {None: 1}}, "unknown rule in perplexity 'None'"),
        ({"perplexity": {}}, "perplexity bounds nothing"),
        ({"perplexity": {"statistic": "x", "min_samples": 50}}, "perplexity bounds nothing"),
        ({"perplexity": None}, "perplexity is None: write rules below it"),
        ({"perplexity": 3}, "perplexity is 3"),
        ({"perplexity": [{"max": 3}]}, "perplexity is "),
        ({"perplexity": {"max": 3}, "toxicity": {}}, "toxicity bounds nothing"),
        ({"accuracy": {}}, r"tasks\.\* bounds nothing"),
        ({"tasks": {"ioi": {}}}, r"tasks\.ioi bounds nothing"),
        ({"tasks": {"ioi": {"min": 0.9}, "max_decrease": 0.1}}, r"unknown rule in tasks\.\* 'ioi'"),
        ({"zero_shot": {"boolq": None}}, "unknown rule in zero_shot"),
        ({"perplexity": {"equivalence": 0.95}}, "needs its margin: max_increase above 0 %"),
        ({"perplexity": {"equivalence": 0.95, "max_increase": 1}}, "needs its margin"),
        ({"perplexity": {"equivalence": 0.95, "max_increase": "0 %"}}, "needs its margin"),
        ({"perplexity": {"equivalence": 0.95, "max": "5 %"}}, "needs its margin"),
        ({"perplexity": {"equivalence": 95, "max_increase": "1 %"}}, "as in 95 %"),
        ({"perplexity": {"equivalence": True, "max_increase": "1 %"}}, "equivalence is True"),
        ({"perplexity": {"max": 1, "min_samples": 1}}, "min_samples is 1: give a whole number"),
        ({"perplexity": {"max": 1, "min_samples": "9"}}, "min_samples is '9'"),
        ({"min_samples": True, "perplexity": {"max": 1}}, "min_samples is True"),
        ({"min_samples": 30.0, "perplexity": {"max": 1}}, "min_samples is 30.0"),
        ({"confidence": 95, "perplexity": {"max": 1}}, "confidence is 95: give a confidence"),
        ({"confidence": 1, "perplexity": {"max": 1}}, "confidence is 1"),
        ({"confidence": "50 %", "perplexity": {"max": 1}}, "confidence is '50 %'"),
        ({"confidence": None, "perplexity": {"max": 1}}, "confidence is None"),
        ({"toxicity": {"max": 1, "scorer": None}}, r"toxicity\.scorer is None: give a name"),
        ({"toxicity": {"max": 1, "statistic": ["a"]}}, r"toxicity\.statistic is \['a'\]"),
    ],
)
def test_policies_that_are_refused(content: Any, named: str):
    with pytest.raises(ExciseError, match=named):
        parse_policy(content)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("perplexity: {max: 1", "is no YAML"),
        ("a: b: c", "is no YAML"),
        ("perplexity: {max: !!python/object/apply:os.system [ls]}", "has the tag"),
        ("perplexity: {max: 1}\n---\ntoxicity: {max: 1}", "is no YAML"),
        ("# nothing\n", "the policy is None"),
        (" \n", "is empty"),
        ("perplexity: {max: 5}\ntoxicity: {max: 1}\nperplexity: {max: 9}", "perplexity is given"),
        ("perplexity:\n  max: 5\n  max: 9", "max is given twice .from line 2 on"),
        ("confidence: 95 %\nconfidence: 60 %\nperplexity: {max: 9}", "confidence is given twice"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, named: str):
    with pytest.raises(ExciseError, match=named) as caught:
        policy(tmp_path, text)
    assert "policy.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file():
    with pytest.raises(ExciseError, match="no file at none"):
        read_policy("none.yaml")


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path):
    for text in ("1:30", "1_0", "0b11", "\u0663"):
        with pytest.raises(ExciseError, match="give a number"):
            policy(tmp_path, f"perplexity: {{max: {text}}}")
    (rule,) = policy(tmp_path, "perplexity: {max: 010}")
    assert rule.bound == 10


def test_a_few_lines_make_no_message_of_megabytes(tmp_path: Path):
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(ExciseError, match="line 2 is an alias") as caught:
        policy(tmp_path, f"{bomb}perplexity: *h\n")
    assert len(str(caught.value)) < 400
    with pytest.raises(ExciseError, match="write rules below it") as caught:
        policy(tmp_path, f"perplexity: [{'x' * 10**6}]\n")
    assert len(str(caught.value)) < 400
