"""Toxicity of completions: columns by hand, judges, prompts, and what is refused."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from excise.core.errors import ExciseError
from excise.core.generation import Decoding, complete
from excise.core.loading import Loaded
from excise.core.texts import text_hash
from excise.eval import completions
from excise.eval.outcome import Outcome, Row
from excise.eval.run import evaluate
from excise.eval.scorers import Scorer
from excise.eval.toxicity import Toxicity, toxicity_columns
from hypothesis import given
from hypothesis import strategies as st


PROMPTS = [
    f"{word} the {noun}" for word in ("and", "one", "two") for noun in ("cat", "mat", "book")
]


def judge(score: Callable[[str], float], name: str = "mine") -> Scorer:
    return Scorer(name, None, "python", lambda texts: [score(text) for text in texts])


CATS = judge(lambda text: 1.0 if "cat" in text else 0.25 if text else 0.0)


@pytest.fixture
def loaded(tiny: Callable[..., Any], tiny_tokenizer: Any) -> Loaded:
    return Loaded(tiny("llama-untied"), tiny_tokenizer, "tiny")


def judged(loaded: Loaded, texts: Sequence[Sequence[str]], **settings: Any) -> list[Outcome]:
    """Return the outcomes of completions that are given, not generated."""
    ids = loaded.tokenizer.convert_tokens_to_ids
    rows: list[Row] = [{"completions": [ids(text.split()) for text in row]} for row in texts]
    metric = Toxicity(PROMPTS[: len(texts)], **{"scorers": (CATS,), **settings})
    return metric.outcomes(loaded, metric.plan(loaded), rows)


# --- numbers ---


def test_numbers_by_hand(loaded: Loaded):
    texts = [["the cat", "mat", "book", "cat"], ["mat", "mat", "book", "to"], ["cat"] * 4]
    (outcome,) = judged(loaded, texts)
    columns = {name: values.tolist() for name, values in outcome.columns.items()}
    assert columns == {
        "maximum": [1.0, 0.25, 1.0],
        "any": [1.0, 0.0, 1.0],
        "mean": [0.625, 0.25, 1.0],
        "fraction": [0.5, 0.0, 1.0],
    }
    values = {name: measure.value for name, measure in outcome.measures.items()}
    assert values == pytest.approx(
        {
            "expected_maximum_toxicity": 0.75,
            "toxicity_probability": 2 / 3,
            "mean_toxicity": 0.625,
            "toxic_fraction": 0.5,
        }
    )
    assert outcome.statistics[0].name == "expected_maximum_toxicity"
    assert [s.name for s in outcome.statistics if s.proportion] == ["toxicity_probability"]
    assert all(statistic.better == "lower" for statistic in outcome.statistics)
    assert outcome.units == tuple(map(text_hash, PROMPTS[:3]))
    assert outcome.headline.n == 3  # prompts, not completions
    assert outcome.texts == {"most toxic completion": ["the cat", "mat", "cat"]}


@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(
            st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=1, max_size=6
        )
    ),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_columns_equal_a_plain_loop(scores: list[list[float]], threshold: float):
    found = toxicity_columns(np.array(scores), threshold)
    for i, row in enumerate(scores):
        toxic = [score for score in row if score >= threshold]
        assert found["maximum"][i] == sorted(row)[-1]
        assert found["any"][i] == (1.0 if toxic else 0.0)
        assert found["mean"][i] == pytest.approx(math.fsum(row) / len(row))
        assert found["fraction"][i] == len(toxic) / len(row)


def test_a_score_at_the_threshold_counts(loaded: Loaded):
    at = [judged(loaded, [["mat"]], threshold=t)[0].columns["any"][0] for t in (0.25, 0.2501)]
    assert at == [1.0, 0.0]


# --- judges ---


def test_judges_look_at_the_same_completions(loaded: Loaded, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    seen: dict[str, list[str]] = {"first": [], "second.txt": []}

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return complete(*arguments)

    def listening(name: str) -> Scorer:
        return judge(lambda text: seen[name].append(text) or len(text) % 7 / 7, name)

    monkeypatch.setattr(completions, "complete", counted)
    judges = tuple(map(listening, seen))
    found = evaluate(loaded, [Toxicity(PROMPTS, Decoding(4, 6), scorers=judges)])
    assert len(calls) == 1
    assert list(found.outcomes) == ["toxicity", "toxicity@second.txt"]
    first, second = found.outcomes.values()
    assert seen["first"] == seen["second.txt"]  # probe sentences included
    assert first.units == second.units
    assert {n: v.tolist() for n, v in first.columns.items()} == {
        n: v.tolist() for n, v in second.columns.items()
    }
    for outcome, name in ((first, "first"), (second, "second.txt")):
        assert outcome.facts["scorer"] == name
        assert name in str(outcome.facts["limits"])
        assert outcome.facts["probe"]["categories"]["insult"]["n"] > 0
        assert outcome.facts["completions"] == 36
        assert outcome.protocol.endswith(f"scorer {name}, threshold 0.5")
        assert "4 samples, 6 new tokens" in outcome.protocol


@pytest.mark.parametrize(
    ("scorers", "named"),
    [((), "needs a scorer"), ((CATS, judge(len)), "mine, mine: name each one once")],
)
def test_judges_that_are_none(loaded: Loaded, scorers: tuple[Scorer, ...], named: str):
    with pytest.raises(ExciseError, match=named):
        Toxicity(PROMPTS, scorers=scorers).plan(loaded)


def test_a_judge_that_fails_leaves_no_outcome(loaded: Loaded):
    picky = judge(lambda text: 0.0 if "cat" in text else math.nan, "picky")
    with pytest.raises(ExciseError, match="gave text 2 the score nan"):
        judged(loaded, [["cat", "mat"]], scorers=(CATS, picky))


# --- empty completions ---


def test_models_that_say_nothing_are_refused(loaded: Loaded):
    texts = [["cat", "mat", "", ".", ". , !"], ["cat", "mat", "to", "book", "one"]]
    for allowed in (0.0, 0.2, 0.29):
        with pytest.raises(ExciseError, match="3 of 10 completions for toxicity are empty"):
            judged(loaded, texts, max_empty=allowed)
    (outcome,) = judged(loaded, texts, max_empty=0.3)
    assert outcome.facts["empty"] == 3
    (silent,) = judged(loaded, [[""]], max_empty=1.0)
    assert silent.facts["empty"] == 1
    (eloquent,) = judged(loaded, [["cat"]], max_empty=0.0)
    assert eloquent.facts["empty"] == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("threshold", value) for value in (0.0, -0.5, 1.01, math.nan)]
    + [("max_empty", value) for value in (-0.01, 1.01, math.nan)]
    + [("batch_size", value) for value in (0, -1)]
    + [("limit", value) for value in (0, -1)],
)
def test_settings_that_mean_nothing(loaded: Loaded, setting: str, value: float):
    with pytest.raises(ExciseError, match=f"{setting} is {value:g}: give"):
        Toxicity(PROMPTS, scorers=(CATS,), **{setting: value}).plan(loaded)  # type: ignore[arg-type]


# --- prompts ---


def test_equal_prompts_count_once(loaded: Loaded):
    def units(prompts: Sequence[str]) -> tuple[str, ...]:
        return Toxicity(prompts, scorers=(CATS,)).plan(loaded).units

    assert units([*PROMPTS, *PROMPTS]) == units(PROMPTS)
    assert units(["the cat", "The  CAT\n", "mat", "the cat"]) == units(["the cat", "mat"])
    kept = Toxicity(["The cat", "mat", "the cat"], scorers=(CATS,)).plan(loaded).inputs
    assert kept == Toxicity(["The cat", "mat"], scorers=(CATS,)).plan(loaded).inputs


def test_a_limit_draws_by_the_seed(loaded: Loaded):
    def units(limit: int | None, seed: int = 0) -> tuple[str, ...]:
        metric = Toxicity(PROMPTS, Decoding(seed=seed), limit, scorers=(CATS,))
        return metric.plan(loaded).units

    every = tuple(map(text_hash, PROMPTS))
    drawn = {units(4, seed) for seed in range(20)}
    assert len(drawn) > 15
    assert set().union(*drawn) == set(every)
    assert all(len(set(some)) == 4 for some in drawn)
    assert units(4) == units(4) != every[:4]
    assert units(9) == units(99) == units(None) == every


def test_prompts_that_cannot_be_completed(loaded: Loaded):
    def plan(prompts: Sequence[str], tokenizer: Any = loaded.tokenizer, new: int = 20) -> Any:
        metric = Toxicity(prompts, Decoding(new_tokens=new), scorers=(CATS,))
        return metric.plan(Loaded(loaded.model, tokenizer, "tiny"))

    def words(text: str) -> dict[str, list[int]]:
        return {"input_ids": [5] * len(text.split())}

    with pytest.raises(ExciseError, match="no prompts"):
        plan([])
    with pytest.raises(ExciseError, match="prompt 2 has no tokens"):
        plan(["the cat", " "], words)
    plan(["cat " * 500], words, new=12)  # 512 positions
    with pytest.raises(ExciseError, match="a sample of 513 tokens is longer"):
        plan(["cat " * 500, "cat"], words, new=13)


def test_what_completions_depend_on(loaded: Loaded):
    """Whatever changes completions must change what they are kept under."""

    def identity(prompts: Sequence[str] = PROMPTS, **decoding: Any) -> Any:
        metric = Toxicity(prompts, Decoding(**decoding), scorers=(CATS,))
        plan = metric.plan(loaded)
        return str((plan.protocol, plan.units, plan.identity))

    kept = [
        identity(),
        identity(seed=1),
        identity(completions=26),
        identity(new_tokens=21),
        identity(temperature=0.1234567),
        identity(temperature=0.1234568),
        identity(top_p=0.9999999),
        identity(top_p=1.0),
        identity([prompt.title() for prompt in PROMPTS]),
    ]
    loaded.model.generation_config.eos_token_id = [2, 9]
    assert len({*kept, identity()}) == len(kept) + 1
