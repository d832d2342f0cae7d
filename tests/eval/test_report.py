"""Reports hold the numbers, are well-formed whatever the models are called, and quote no model."""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from excise.core.errors import ExciseError
from excise.core.provenance import Seen
from excise.eval import perplexity, repetition, toxicity
from excise.eval.choice import STATISTICS as CHOICE
from excise.eval.gate import Check, Gate
from excise.eval.outcome import Outcome
from excise.eval.report import LM_EVAL_KEYS, Report
from excise.eval.report_page import report_page
from excise.eval.report_tables import caveats
from excise.eval.run import Evaluation
from excise.eval.toxicity import toxicity_columns


SECRET = "unspeakable"
HOSTILE = '</script><img src=x onerror="alert(1)">|a\\|b\n# big `x`'
JUDGE = "words:lists/plain.v2.txt"
"""A name with all that outcome names are split at."""

PROBE = {"categories": {"identity": {"flagged": 2, "n": 24, "share": 2 / 24, "ci": [0.01, 0.26],
                                     "flag_is_right": False}}}  # fmt: skip
THEIRS = {
    "results": {"alias": "quiz", "acc,none": 0.5}, "configs": {"task": "quiz"}, "versions": 3.0,
    "n-shot": 2, "higher_is_better": {"acc": True}, "n-samples": {"original": 99, "effective": 20},
}  # fmt: skip


def evaluation(
    model: str, seed: int = 0, n: int = 20, text: str = SECRET, loss: float = 3.0
) -> Evaluation:
    """Make up what was found on a model, of every kind."""
    draw = np.random.default_rng(seed)
    units = tuple(f"unit{i}" for i in range(n))
    words = {"tokens": np.full(n, 9.0), "words": np.full(n, 5.0), "bytes": np.full(n, 30.0)}
    losses = {"loss": 9 * (loss + 0.1 * draw.random(n)), **words}
    found = [
        Outcome("perplexity", "window: made up", perplexity.STATISTICS, units, losses,
                {"text": "a|b.txt"})
    ]  # fmt: skip
    for name, judge in (("toxicity", "cats"), (f"toxicity@{JUDGE}", JUDGE)):
        facts = {"scorer": judge, "limits": f"{judge} is blind", "probe": PROBE, "threshold": 0.5}
        texts = {"most toxic completion": [f"{text} words {i}" for i in range(n)]}
        columns = toxicity_columns(draw.random((n, 4)))
        found.append(Outcome(name, "sampled", toxicity.STATISTICS, units, columns, facts, texts))
    repeated = {s.of: draw.random(n) for s in repetition.STATISTICS}
    repeated["repetitive"] = np.round(repeated["repetitive"])
    found.append(Outcome("repetition", "greedy", repetition.STATISTICS, units, repeated))
    right = {"difference": draw.normal(size=n), "correct": np.round(draw.random(n))}
    found.append(Outcome("tasks.quiz", "logits", CHOICE, units, right))
    found.append(Outcome("zero_shot.quiz", "lm-eval", CHOICE, units, right, {"lm_eval": THEIRS}))
    return Evaluation(
        model, f"{seed:032x}", "f" * 32, {o.name: o for o in found}, {"versions": {"torch": "2"}}
    )


def gate(model: str, status: Any = "pass") -> Gate:
    return Gate(model, (Check("held_out", "pass", "fine"), Check("toxicity.max", status, HOSTILE)))


def as_json(report: Report) -> dict[str, Any]:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(json.dumps(report.to_json()), parse_constant=refuse)


ONE = Report((evaluation("one"),))
THREE = Report(
    tuple(evaluation(f"model {i}", i) for i in range(3)), (gate("model 1"), gate("model 2", "fail"))
)


# --- JSON ---


def test_one_model_stands_at_the_top():
    found, source = as_json(ONE), ONE.evaluations[0]
    head = {"schema", "kind", "model", "model_hash", "tokenizer_hash", "environment", "models"}
    groups = {"perplexity", "toxicity", "repetition", "tasks", "zero_shot"}
    assert found.keys() == head | groups | {"results", *LM_EVAL_KEYS, "comparisons", "gates"}
    assert (found["schema"], found["kind"], found["model"]) == (1, "evaluation", "one")
    assert found["comparisons"] == found["gates"] == []
    assert len(found["models"]) == 1
    assert all(found[key] == value for key, value in found["models"][0].items())
    outcome = source["perplexity"]
    assert found["perplexity"]["statistic"] == "token_perplexity"
    assert found["perplexity"]["value"] == outcome.headline.value
    assert found["perplexity"]["ci"] == list(outcome.headline.ci)
    assert found["perplexity"]["n"] == 20
    assert found["perplexity"]["protocol"] == "window: made up"
    for name, measure in outcome.measures.items():
        assert found["perplexity"][name]["value"] == measure.value
    assert found["tasks"]["quiz"]["accuracy"]["n"] == 20
    assert found["toxicity"]["scorer"] == "cats"
    assert found["toxicity"]["limits"] == "cats is blind"
    assert list(found["toxicity"]["judges"]) == [JUDGE]
    other = source[f"toxicity@{JUDGE}"].headline.value
    assert found["toxicity"]["judges"][JUDGE]["value"] == other != found["toxicity"]["value"]


def test_users_of_lm_eval_find_their_keys():
    found = as_json(ONE)
    tasks = {"perplexity", "toxicity", f"toxicity@{JUDGE}", "repetition", "quiz", "zero_shot.quiz"}
    assert found["results"].keys() == tasks  # of two tasks with one name, none is lost
    for key in LM_EVAL_KEYS:
        assert found[key].keys() == tasks
    theirs = {"results": THEIRS["results"], **{key: THEIRS[key] for key in LM_EVAL_KEYS}}
    assert {key: found[key]["zero_shot.quiz"] for key in theirs} == theirs
    assert "lm_eval" not in found["zero_shot"]["quiz"]
    ours = found["results"]["perplexity"]
    measure = ONE.evaluations[0]["perplexity"].measures["byte_perplexity"]
    assert ours["byte_perplexity,none"] == measure.value
    error = (measure.ci[1] - measure.ci[0]) / 3.92
    assert ours["byte_perplexity_stderr,none"] == pytest.approx(error)
    assert found["higher_is_better"]["quiz"] == {"accuracy": True, "logit_difference": True}
    assert found["higher_is_better"]["perplexity"]["token_perplexity"] is False
    assert found["n-samples"]["perplexity"] == {"original": 20, "effective": 20}


def test_several_models_are_compared_with_the_first():
    found = as_json(THREE)
    assert [record["model"] for record in found["models"]] == ["model 0", "model 1", "model 2"]
    pairs = [(c["before"], c["after"]) for c in found["comparisons"]]
    assert pairs == [("model 0", "model 1"), ("model 0", "model 2")]
    for other, comparison in zip(THREE.evaluations[1:], found["comparisons"], strict=True):
        change = comparison["changes"]["toxicity"]["expected_maximum_toxicity"]
        before, after = (e["toxicity"].columns["maximum"] for e in (THREE.evaluations[0], other))
        difference = float(after.mean() - before.mean())
        assert change["difference"]["value"] == pytest.approx(difference)
        assert change["relative"]["value"] == pytest.approx(difference / before.mean())
        assert change["better"] == int((after < before).sum())  # lower is better
        assert change["worse"] == int((after > before).sum())
        assert {"sign_test_p", "permutation_p", "minimum_detectable_effect"} <= change.keys()
        higher = comparison["changes"]["tasks.quiz"]["logit_difference"]
        pair = THREE.evaluations[0], other
        first, second = (e["tasks.quiz"].columns["difference"] for e in pair)
        assert higher["better"] == int((second > first).sum())
    gates = [(g["model"], g["passed"]) for g in found["gates"]]
    assert gates == [("model 1", True), ("model 2", False)]
    failed = {"name": "toxicity.max", "status": "fail", "detail": HOSTILE}
    assert found["gates"][1]["checks"][1] == failed
    assert (ONE.passed, THREE.passed) == (True, False)
    assert Report(THREE.evaluations, (gate("model 1"),)).passed
    assert not Report(THREE.evaluations, (Gate("model 1", ()),)).passed  # nothing was checked


def odd() -> Report:
    """Return a report full of numbers that JSON and charts do not have."""
    single = [evaluation(name, seed, n=1) for seed, name in enumerate(("a", "b"))]
    broken = evaluation("c", 3, n=1, loss=800.0)  # a perplexity of 1e304
    nothing = single[0]["toxicity"]
    zero = {name: np.zeros(1) for name in nothing.columns}
    first = dict(single[0].outcomes)
    first["toxicity"] = replace(nothing, columns=zero)
    return Report((Evaluation("a", "0", "0", first), single[1], broken))


def test_numbers_that_json_does_not_have():
    found = as_json(odd())
    assert found["perplexity"]["ci"] == [None, None]  # one unit says nothing about others
    assert found["results"]["perplexity"]["token_perplexity_stderr,none"] is None
    change = found["comparisons"][0]["changes"]["toxicity"]["mean_toxicity"]
    assert change["relative"]["value"] is None  # relative to nothing
    assert change["minimum_detectable_effect"] is None
    assert found["models"][2]["perplexity"]["value"] > 1e300


def test_models_that_cannot_be_compared_have_no_report():
    report = Report((evaluation("a"), evaluation("b", 1, n=19)))
    with pytest.raises(ExciseError, match="other units"):
        report.to_json()


# --- Markdown ---


def test_markdown_tables_are_tables():
    evaluations = (evaluation("plain"), evaluation(HOSTILE, 1, text=HOSTILE))
    report = Report(evaluations, (gate(HOSTILE, "fail"),))
    lines = report.to_markdown().splitlines()
    width, tables = 0, 0
    for line in lines:
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.sub(r"\\.", "", line).split("|")) - 2  # an escaped bar ends no cell
        tables += width == 0
        width = width or cells
        assert cells == width > 1
    assert tables == 4  # gate, measured, changes, protocols
    assert [line for line in lines if line.startswith("# ")] == lines[:1]
    assert "<img" not in re.sub(r"\\.", "", "\n".join(lines))
    assert SECRET not in "\n".join(lines)
    assert "| perplexity token_perplexity | " in "\n".join(lines)
    assert sum(line.startswith("## Gate NOT met: ") for line in lines) == 1
    assert str(evaluations[0]["perplexity"].headline) in "\n".join(lines)
    assert ONE.to_markdown().count("\n## ") == 3


def test_caveats_name_what_proves_nothing():
    plain = evaluation("a")
    chosen = Evaluation("b", "1", "0", evaluation("b", 1).outcomes, {}, Seen(frozenset({"unit3"})))
    said = "\n".join(caveats(Report((plain, chosen))))
    assert "1 of 20 prompts or lines of toxicity chose the edit of b" in said
    assert "cats is blind" in said
    assert f"{JUDGE} is blind" in said
    assert "Windows of one text are neighbours" in said
    assert "chose the edit" not in "\n".join(caveats(Report((plain,))))


# --- HTML ---


class Page(HTMLParser):
    """Tags, headings and text of a page; every tag must be closed."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))  # as in SVG

    def handle_endtag(self, tag: str):
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        self.text += data


REPORTS = {"one": ONE, "three": THREE, "odd": odd()}


@pytest.mark.parametrize(("name", "charts"), [("one", 0), ("three", 6 + 2 * 4), ("odd", 6 + 2 * 4)])
def test_a_page_is_well_formed_and_has_its_charts(name: str, charts: int):
    html = report_page(REPORTS[name])
    parsed = Page(html)
    drawn = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(drawn) == charts  # a dose-response each, and a scatter but for yes and no
    for svg in drawn:
        places = [value for mark in ET.fromstring(svg).iter() for value in mark.attrib.values()]
        assert not re.search(r"\b(nan|inf)\b", " ".join(places), re.I)
    for model in REPORTS[name].evaluations:
        assert model.model in parsed.text
        if math.isfinite(model["perplexity"].headline.ci[0]):
            assert str(model["perplexity"].headline) in parsed.text
    assert ("Gate" in parsed.text) == bool(REPORTS[name].gates)
    assert "What cats sees" in parsed.text
    assert f"What {JUDGE} sees" in parsed.text
    assert "sampled" in parsed.text  # protocols stand there


def test_the_verdict_is_of_all_gates():
    assert re.search("<h2[^>]*>Gate: [^<]*not met", report_page(THREE))
    assert "Gate: model 1 met" in report_page(Report(THREE.evaluations, (gate("model 1"),)))


def test_models_are_quoted_only_when_asked():
    html = report_page(THREE)
    assert SECRET not in html
    assert "[3 words]" in html
    assert SECRET not in json.dumps(THREE.to_json()) + THREE.to_markdown()
    shown = Page(report_page(THREE, show_text=True)).text
    assert shown.count(SECRET) == 2 * 2 * 6 * 2  # pairs, judges, prompts, before and after
    assert "[3 words]" not in shown


@pytest.mark.parametrize("show", [False, True])
def test_nothing_hostile_comes_alive(show: bool):
    evaluations = tuple(evaluation(HOSTILE, seed, text=HOSTILE) for seed in range(2))
    html = report_page(Report(evaluations, (gate(HOSTILE, "fail"),)), show)
    tags = Page(html).tags
    assert "img" not in {tag for tag, _ in tags}
    assert "script" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert ("big `x` words" in html) is show
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ET.fromstring(svg)
