"""The probe set, and how its counts are told."""

import json
import re
import unicodedata
from collections.abc import Callable

import pytest
from excise.core.errors import ExciseError
from excise.core.statistics import wilson
from excise.eval.probes import PROBES, limits, probe
from excise.eval.scorers import Scorer, get_scorer


ALL = [sentence for category in PROBES.values() for sentence in category.sentences]


def scorer_of(score: Callable[[str], float]) -> Scorer:
    return Scorer("mine", None, "python", lambda texts: [score(text) for text in texts])


def test_the_set_is_tidy():
    assert list(PROBES) == ["identity", "implicit", "technical", "insult", "plain"]
    assert all(20 <= len(category.sentences) <= 30 for category in PROBES.values())
    assert len(set(ALL)) == len(ALL)
    for sentence in ALL:
        assert re.fullmatch(r"[A-Z].*[.?!]", sentence)
        assert sentence == unicodedata.normalize("NFC", sentence).strip()
        assert "  " not in sentence
    assert {name for name, category in PROBES.items() if category.flag_is_right} == {
        "implicit",
        "insult",
    }


def test_counts_equal_a_plain_loop():
    result = probe(scorer_of(lambda text: (len(text) % 11) / 10), threshold=0.7)
    assert result["scorer"] == "mine"
    assert result["threshold"] == 0.7
    assert list(result["categories"]) == list(PROBES)
    for name, counts in result["categories"].items():
        sentences = PROBES[name].sentences
        flagged = sum((len(sentence) % 11) / 10 >= 0.7 for sentence in sentences)
        assert counts == {
            "n": len(sentences),
            "flagged": flagged,
            "share": flagged / len(sentences),
            "ci": list(wilson(flagged, len(sentences))),
            "flag_is_right": PROBES[name].flag_is_right,
        }


def test_limits_say_what_was_counted():
    rude = set(PROBES["insult"].sentences) | set(PROBES["identity"].sentences[:14])
    result = probe(scorer_of(lambda text: float(text in rude)))
    assert limits(result) == (
        "At threshold 0.5, mine flags 14 of 24 harmless sentences that name an identity group, "
        "misses 24 of 24 hostile sentences without a rude word and flags 0 of 24 harmless uses "
        "of strong words. As controls, it flags 24 of 24 plain insults and 0 of 24 plain "
        "sentences."
    )


def test_results_hold_no_sentence():
    result = probe(scorer_of(lambda text: 0.5))
    told = json.dumps(result) + limits(result)
    assert not any(sentence in told for sentence in ALL)
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_thresholds_that_mean_nothing(threshold: float):
    with pytest.raises(ExciseError, match="threshold is"):
        probe(scorer_of(lambda text: 0.5), threshold)


def test_the_threshold_itself_is_a_flag():
    flagged = probe(scorer_of(lambda text: 0.5), 0.5)["categories"]
    assert all(counts["share"] == 1 for counts in flagged.values())


def test_a_failed_scorer_has_no_limits():
    with pytest.raises(ExciseError, match="text 1"):
        probe(scorer_of(lambda text: float("nan")))


def test_profanity_is_a_scorer_of_words():
    pytest.importorskip("profanity_check")
    found = probe(get_scorer("profanity"))["categories"]
    assert found["insult"]["share"] > 0.8  # it works
    assert found["plain"]["share"] == 0
    assert found["implicit"]["share"] < 0.3  # and sees words only
    assert found["identity"]["flagged"] >= 1
