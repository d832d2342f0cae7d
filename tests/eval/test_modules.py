"""The modules for `evaluate` against direct computation."""

import importlib
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.errors import ExciseError
from excise.eval.scorers import Scorer


evaluate = pytest.importorskip("evaluate")

from excise.eval import modules  # noqa: E402  (needs evaluate)
from excise.eval.modules import (  # noqa: E402
    ExpectedMaximumToxicity,
    Module,
    Perplexity,
    Repetition,
    Toxicity,
)


WORDS = ("Mary", "John", "gave", "the", "book", "to", "and", "cat", "sat")

SHARE = Scorer("share", "1", "test", lambda texts: [t.count("a") / max(1, len(t)) for t in texts])


@pytest.fixture(autouse=True)
def evaluate_cache(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "evaluate"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder)
        yield folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    draw = random.Random(2)
    return [" ".join(draw.choices(WORDS, k=n)) for n in (5, 30, 1, 12, 70)]


def slow_loss(model: Any, tokenizer: Any, text: str) -> tuple[float, int]:
    ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -sum(float(scores[i - 1, ids[i]]) for i in range(1, len(ids))), len(ids) - 1


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_perplexity_is_of_all_tokens(
    tiny: Callable[..., Any], tiny_tokenizer: Any, texts: list[str], kind: str
):
    model = tiny(kind)
    found = Perplexity().compute(data=texts, model=model, tokenizer=tiny_tokenizer)
    assert found
    losses, counts = zip(*(slow_loss(model, tiny_tokenizer, text) for text in texts), strict=True)
    assert found["token_perplexity"] == pytest.approx(math.exp(sum(losses) / sum(counts)), rel=1e-5)
    each = [math.exp(loss / count) for loss, count in zip(losses, counts, strict=True)]
    assert found["perplexities"] == pytest.approx(each, rel=1e-5)
    assert found["token_perplexity"] != pytest.approx(np.mean(each), rel=1e-2)  # HF's mean
    low, high = found["token_perplexity_ci"]
    assert low < found["token_perplexity"] < high
    assert found["n"] == 5
    assert "document" in found["protocol"]
    assert "window=512" in found["protocol"]


def test_batches_padding_and_order_change_nothing(
    tiny_llama: Any, tiny_tokenizer: Any, texts: list[str]
):
    module = Perplexity(model=tiny_llama, tokenizer=tiny_tokenizer, window=16)
    first = module.compute(data=texts, batch_size=1)
    assert first
    for size in (2, 7):
        found = module.compute(data=texts[::-1], batch_size=size)
        assert found
        assert found["perplexities"][::-1] == pytest.approx(first["perplexities"], rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(first["bits_per_byte"], rel=1e-5)


def test_batches_are_added_up(tiny_llama: Any, tiny_tokenizer: Any, texts: list[str]):
    module = Perplexity(model=tiny_llama, tokenizer=tiny_tokenizer)
    expected = module.compute(data=texts)
    module.add_batch(data=texts[:2])
    module.add_batch(data=texts[2:4])
    module.add(data=texts[4])
    assert module.compute() == expected
    assert module.compute(data=texts) == expected  # nothing is left behind


def test_toxicity():
    texts = ["aaaa", "baab", "bbbb", "b"]
    found = Toxicity().compute(data=texts, scorer=SHARE)
    assert found
    assert found["toxicity"] == [1.0, 0.5, 0.0, 0.0]
    assert (found["mean_toxicity"], found["max_toxicity"]) == (0.375, 1.0)
    assert found["toxic_fraction"] == 0.5  # the threshold itself counts
    low, high = found["toxic_fraction_ci"]
    assert 0 < low < 0.5 < high < 1
    assert "scorer share, threshold 0.5" in found["protocol"]
    with pytest.raises(ExciseError, match="2 of 3 completions for toxicity are empty"):
        Toxicity(scorer=SHARE).compute(data=["a", "", "..."])


def test_a_scorer_by_name(tmp_path: Path):
    (tmp_path / "words.txt").write_text("mat\n")
    found = Toxicity(scorer=f"words:{tmp_path / 'words.txt'}").compute(data=["a mat", "a cat"])
    assert found
    assert found["toxicity"] == [1.0, 0.0]


def test_expected_maximum_toxicity():
    rows = [["aaaa", "b"], ["ab", "b"], ["b", "b"], ["abbb", "abbb"]]
    found = ExpectedMaximumToxicity(scorer=SHARE).compute(data=rows, threshold=0.75)
    assert found
    assert found["expected_maximum_toxicity"] == pytest.approx((1 + 0.5 + 0 + 0.25) / 4)
    assert found["toxicity_probability"] == 0.25
    assert found["mean_toxicity"] == pytest.approx((1 + 0.5 + 0.25 + 0.25) / 8)
    assert found["n"] == 4
    with pytest.raises(ExciseError, match="1 or 2 completions"):
        ExpectedMaximumToxicity(scorer=SHARE).compute(data=[["a"], ["a", "b"]])


def test_repetition(tiny_tokenizer: Any):
    texts = ["the cat the cat", "Mary sat on the mat", "go go go go go"]
    found = Repetition().compute(data=texts)
    assert found
    assert found["unique_token_ratio"] == pytest.approx((2 / 4 + 1 + 1 / 5) / 3)
    assert found["repetitive"] == pytest.approx(1 / 3)
    assert found["longest_repeat"] == pytest.approx((2 + 0 + 2) / 3)
    assert "words" in found["protocol"]
    tokens = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    as_ids = Repetition().compute(data=tokens)
    as_tokens = Repetition().compute(data=texts, tokenizer=tiny_tokenizer)
    assert as_ids
    assert as_tokens
    assert as_ids["length"] == as_tokens["length"] == found["length"]
    assert as_ids["unique_token_ratio"] == as_tokens["unique_token_ratio"]


def test_a_combination(tiny_llama: Any, tiny_tokenizer: Any, texts: list[str]):
    given = {"model": tiny_llama, "scorer": SHARE, "tokenizer": tiny_tokenizer}
    both = evaluate.combine([Perplexity(), Toxicity(), Repetition()])
    found = both.compute(data=texts, **given)
    alone = Perplexity().compute(data=texts, model=tiny_llama, tokenizer=tiny_tokenizer)
    assert alone
    assert found["token_perplexity"] == alone["token_perplexity"]
    assert found["perplexity_protocol"] == alone["protocol"]
    assert {"mean_toxicity", "unique_token_ratio", "toxicity_n"} <= set(found)
    made = [Perplexity(model=tiny_llama, tokenizer=tiny_tokenizer), Repetition()]
    assert (
        evaluate.combine(made).compute(data=texts)["token_perplexity"]
        == (alone["token_perplexity"])
    )


def test_no_text_is_written(evaluate_cache: Path):
    Toxicity(scorer=SHARE).compute(data=["a secret"])
    assert [path for path in evaluate_cache.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("module", modules.MODULES)
def test_a_module_describes_itself(module: type[Module]):
    made = module()
    assert made.info.description
    assert "Returns:" in made.inputs_description
    assert made.inputs_description in (made.compute.__doc__ or "")


def test_bad_input(tiny_llama: Any, tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match="unknown setting 'modle': did you mean 'model'"):
        Perplexity(modle=tiny_llama)
    with pytest.raises(ExciseError, match="unknown setting 'scorr': did you mean 'scorer'"):
        Toxicity().compute(data=["a"], scorr=SHARE)
    with pytest.raises(ExciseError, match="perplexity needs model and tokenizer"):
        Perplexity().compute(data=["a"])
    with pytest.raises(ExciseError, match="the name 'gpt2': load it"):
        Perplexity().compute(data=["a"], model="gpt2", tokenizer=tiny_tokenizer)
    with pytest.raises(ExciseError, match="threshold is 0"):
        Toxicity(scorer=SHARE).compute(data=["a"], threshold=0)
    with pytest.raises(ExciseError, match="repetition was given no data"):
        Repetition().compute(data=[])
    with pytest.raises(ExciseError, match="toxicity was given no data"):
        Toxicity(scorer=SHARE).compute()
    for module in (Repetition(), Toxicity(scorer=SHARE)):
        with pytest.raises(ExciseError, match="is one text: give a list"):
            module.compute(data="a text")


def test_without_evaluate(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    monkeypatch.delitem(sys.modules, "excise.eval.modules")
    with pytest.raises(
        ExciseError, match=r"need the package evaluate: pip install 'excise\[eval\]'"
    ):
        importlib.import_module("excise.eval.modules")
