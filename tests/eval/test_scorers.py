"""Scorers against what they should say, and every way a scorer can fail."""

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from excise.core.errors import ExciseError
from excise.eval import scorers
from excise.eval.calibration import PROFANITY
from excise.eval.scorers import SCORERS, Scorer, get_scorer, score_texts


TEXTS = (
    "Mary gave the book to John",
    "the cat sat on the mat , and then it was not there !",
    "one",
    "",
    "the cat sat on the mat , and then it was not there !",
    "one two three ( ) . , ! " * 30,
)
SECRET = "unspeakable"


def scorer_of(score: Callable[[list[str]], Any]) -> Scorer:
    return Scorer("mine", None, "python", score)


# --- what is believed ---


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_scores_keep_order_and_repetition(batch_size: int):
    seen: list[str] = []

    def score(texts: list[str]) -> list[float]:
        seen.extend(texts)
        found = [len(text) / 1000 for text in texts]
        texts.clear()  # a rude guest must not change what is counted
        return found

    assert score_texts(scorer_of(score), TEXTS, batch_size) == [len(t) / 1000 for t in TEXTS]
    assert seen == list(TEXTS)
    assert score_texts(scorer_of(score), [], batch_size) == []


@pytest.mark.parametrize(
    ("values", "believed"),
    [
        ([0, 1], [0.0, 1.0]),
        ([True, False], [1.0, 0.0]),
        (np.array([0.25, 0.5], dtype=np.float32), [0.25, 0.5]),
        ((0.25, np.float64(0.5)), [0.25, 0.5]),
    ],
)
def test_real_numbers_are_believed(values: Any, believed: list[float]):
    found = score_texts(scorer_of(lambda texts: values), ["a", "b"])
    assert found == believed
    assert all(type(one) is float for one in found)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ([0.5, math.nan], "gave text 4 the score nan"),
        ([0.5, math.inf], "gave text 4 the score inf"),
        ([-0.1, 0.5], r"gave text 3 the score -0\.1"),
        ([0.5, 1.0001], r"gave text 4 the score 1\.0001"),
        ([None, 0.5], "gave text 3 a value of type NoneType"),
        ([0.5, SECRET], "gave text 4 a value of type str"),
        ([0.5, 1j], "gave text 4 a value of type complex"),
        (np.array([[0.5], [0.5]]), "gave text 3 a value of type ndarray"),
        ([0.5], "gave 1 scores for texts 3 to 4 of 4"),
        ([0.5] * 3, "gave 3 scores for texts 3 to 4 of 4"),
        ([], "gave 0 scores for texts 3 to 4 of 4"),
        (None, "failed on texts? 3.* with TypeError"),
        (0.5, "failed on texts? 3.* with TypeError"),
    ],
)
def test_what_is_no_score_is_an_error(values: Any, named: str):
    def score(texts: list[str]) -> Any:
        return [0.5, 0.5] if "first" in texts else values

    with pytest.raises(ExciseError, match=f"^scorer 'mine' {named}") as caught:
        score_texts(scorer_of(score), ["first", "b", SECRET, SECRET], batch_size=2)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_the_text_that_fails_is_named_by_number(batch_size: int):
    def score(texts: list[str]) -> list[float]:
        for text in texts:
            if text == SECRET:
                raise RuntimeError(f"cannot read {text}")
        return [0.0] * len(texts)

    with pytest.raises(ExciseError, match="failed on text 5 with RuntimeError") as caught:
        score_texts(scorer_of(score), ["a", "b", "c", "d", SECRET, "f"], batch_size)
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_batch_that_fails_only_as_a_batch():
    def score(texts: list[str]) -> list[float]:
        if len(texts) > 2:
            raise MemoryError
        return [0.0] * len(texts)

    with pytest.raises(ExciseError, match=r"texts 1 to 3 of 3 with MemoryError.*smaller batch"):
        score_texts(scorer_of(score), ["a", "b", "c"])
    assert score_texts(scorer_of(score), ["a", "b", "c"], batch_size=2) == [0.0] * 3
    with pytest.raises(ExciseError, match="batch_size is 0"):
        score_texts(scorer_of(score), ["a"], batch_size=0)


def test_an_interruption_is_no_failed_scorer():
    def score(texts: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_texts(scorer_of(score), ["a"])


# --- specs ---


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ("profanty", "unknown scorer 'profanty': did you mean 'profanity'"),
        ("unitary/toxic-bert", "unknown scorer 'unitary/toxic-bert'.*known are hf, profanity"),
        ("", "unknown scorer ''"),
        ("hf", "scorer 'hf': write it as hf:ID_OR_FOLDER"),
        ("hf:", "scorer 'hf:': write it as hf:ID_OR_FOLDER"),
        ("words:", "write it as words:FILE"),
        ("profanity:0.5", "scorer 'profanity:0.5': write it as profanity"),
        ("python:math", "write it as python:package.module:function"),
        ("python:math:", "write it as python:package.module:function"),
    ],
)
def test_specs_that_mean_nothing(spec: str, named: str):
    with pytest.raises(ExciseError, match=named):
        get_scorer(spec)


def test_every_scorer_is_told_in_one_line():
    assert set(SCORERS) == {"profanity", "profanity-raw", "hf", "words", "python"}
    for prefix, line in SCORERS.items():
        assert line.startswith(prefix)
        assert "\n" not in line


def test_the_table_costs_no_heavy_import():
    heavy = "{'torch', 'transformers', 'sklearn', 'numpy'}"
    code = f"import sys, excise.eval.scorers; print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


# --- profanity ---


def test_profanity_is_calibrated():
    package = pytest.importorskip("profanity_check")
    calibrated, raw = get_scorer("profanity"), get_scorer("profanity-raw")
    texts = [*TEXTS, "You are an idiot."]
    plain = [float(package.predict_prob([text])[0]) for text in texts]
    assert score_texts(raw, texts) == pytest.approx(plain)
    assert score_texts(calibrated, texts) == pytest.approx(list(PROFANITY(plain)))
    assert (calibrated.kind, raw.kind) == ("profanity", "profanity")
    assert calibrated.identity != raw.identity
    assert "alt-profanity-check=" in str(raw.identity)
    assert str(PROFANITY.slope) in str(calibrated.identity)
    assert get_scorer("profanity") == calibrated


def test_profanity_without_its_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorers, "find_spec", lambda name: None)
    with pytest.raises(ExciseError, match=r"alt-profanity-check: pip install 'excise\[toxicity\]'"):
        get_scorer("profanity")


def test_profanity_of_another_scikit_learn(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str) -> Any:
        raise ValueError("incompatible\npickle")

    monkeypatch.setattr(scorers, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(scorers, "import_module", broken)
    with pytest.raises(ExciseError, match=r"does not load \(incompatible\).*reinstall"):
        get_scorer("profanity")


# --- words ---


@pytest.fixture
def word_list(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a list and returns its spec."""

    def write(text: str) -> str:
        (tmp_path / "list.txt").write_text(text, encoding="utf-8")
        return f"words:{tmp_path / 'list.txt'}"

    return write


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("rat", "A RAT!", True),
        ("rat", "You rat's nest", True),
        ("rat", "the rate of pirates", False),
        ("rat", "rat_1", False),
        ("rat", "rats and then a rat", True),
        ("go away", "Go \n away, please", True),
        ("go away", "go far away", False),
        ("Straße", "STRASSE 5", True),
        ("d\u00e9bile", "de\u0301bile", True),  # one letter, or letter and mark
        ("debile", "débile", False),
        ("дурак", "Ты ДУРАК.", True),
        ("дурак", "дураки", False),
        ("मूर्ख", "वह मूर्ख है", True),
        ("मूर्ख", "मूर्खता", False),
        ("क", "कि", False),  # a vowel sign is no letter, and part of the word
        ("@#!", "what the @#!?", True),
        ("", "", False),
    ],
)
def test_whole_words(word_list: Callable[[str], str], phrase: str, text: str, found: bool):
    scorer = get_scorer(word_list(f"# comment\n\nother\n  {phrase}  \n"))
    assert score_texts(scorer, [text]) == [float(found)]


def test_the_list_is_what_identifies_it(word_list: Callable[[str], str]):
    first = get_scorer(word_list("rat\npig\n"))
    assert first.kind == "words"
    assert get_scorer(word_list("\ufeff# order, case and comments mean nothing\nPIG\nrat")) == first
    assert get_scorer(word_list("rat\npigs\n")).identity != first.identity
    assert score_texts(first, ["no comment", "pig"]) == [0.0, 1.0]


def test_lists_that_are_none(word_list: Callable[[str], str], tmp_path: Path):
    with pytest.raises(ExciseError, match=r"list\.txt has no words"):
        get_scorer(word_list("# nothing\n\n"))
    with pytest.raises(ExciseError, match=r"cannot read .*none\.txt \(No such file"):
        get_scorer(f"words:{tmp_path / 'none.txt'}")
    with pytest.raises(ExciseError, match=r"cannot read .* \(Is a directory"):
        get_scorer(f"words:{tmp_path}")
    (tmp_path / "latin.txt").write_bytes("d\u00e9bile".encode("latin-1"))
    with pytest.raises(ExciseError, match=r"latin\.txt is not UTF-8"):
        get_scorer(f"words:{tmp_path / 'latin.txt'}")


# --- python ---


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a file with functions; its folder is importable."""
    path = tmp_path / "my_own_scorer.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Weight:\n    value: float\n"
        "def short(texts):\n    return [1 / (1 + len(t)) * Weight(1.0).value for t in texts]\n"
        "def picky(texts):\n    return [1 / len(t) for t in texts]\n"
        "def broken(texts):\n    return [float('nan') for t in texts]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    for name in ("my_own_scorer", "excise_scorer_my_own_scorer"):
        sys.modules.pop(name, None)


def test_a_function_of_ones_own(own: Path):
    for place in (own, "my_own_scorer"):
        scorer = get_scorer(f"python:{place}:short")
        assert (scorer.kind, scorer.identity) == ("python", None)
        assert score_texts(scorer, ["", "abc"]) == [1.0, 0.25]


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("{}:long", "has no function 'long'"),
        ("{}:number", "has no function 'number'"),
        ("{}:picky", r"trial .*failed on text 2 with ZeroDivisionError.*\(.*division by zero\)"),
        ("{}:broken", "trial .*gave text 1 the score nan"),
        ("no_such_module:f", r"cannot import no_such_module: ModuleNotFoundError.*PYTHONPATH"),
        ("no/such/file.py:f", r"cannot import no/such/file\.py: FileNotFoundError"),
    ],
)
def test_functions_that_fail_fail_at_once(own: Path, place: str, named: str):
    with pytest.raises(ExciseError, match=named) as caught:
        get_scorer(f"python:{place.format(own)}")
    assert "\n" not in str(caught.value)


def test_a_module_that_fails(own: Path):
    own.write_text("raise RuntimeError('not today')")
    with pytest.raises(ExciseError, match=r"cannot import .*: RuntimeError: not today$"):
        get_scorer(f"python:{own}:short")
