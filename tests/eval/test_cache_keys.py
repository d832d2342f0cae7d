"""What was measured once is read again only where everything is the same."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.data import Prompt
from excise.core.generation import Decoding
from excise.core.identity import model_hash
from excise.core.loading import Loaded
from excise.core.texts import text_hash
from excise.eval.choice import TaskAccuracy
from excise.eval.outcome import Metric
from excise.eval.perplexity import Perplexity
from excise.eval.repetition import Repetition
from excise.eval.run import evaluate
from excise.eval.store import Store


@pytest.fixture
def loaded(tiny_llama: Any, tiny_tokenizer: Any) -> Loaded:
    return Loaded(tiny_llama, deepcopy(tiny_tokenizer), "tiny")


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with the units that are measured, not read."""
    units, add = [], Store.add

    def noted(self: Store, index: int, row: dict[str, Any]) -> None:
        units.append(index)
        add(self, index, row)

    monkeypatch.setattr(Store, "add", noted)
    return units


def of_task(*texts: str) -> Metric:
    return TaskAccuracy("t", lambda _: [Prompt(text, None, "John", "Mary") for text in texts])


def of_completions(*texts: str) -> Metric:
    return Repetition(texts, Decoding(completions=0, new_tokens=3), max_empty=1)


def of_documents(*texts: str, window: int = 8) -> Metric:
    return Perplexity(texts, "document", window)


METRICS = (of_task, of_completions, of_documents)
TEXTS = ("the cat sat on the", "one two", "the mat")


def changed_weight(model: Any, tokenizer: Any) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-6


def changed_norm(model: Any, tokenizer: Any) -> None:
    model.config.rms_norm_eps = 1e-3


def changed_end(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = 7


def changed_token(model: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["cats"])


def changed_special(model: Any, tokenizer: Any) -> None:
    tokenizer.pad_token = "</s>"


def changed_rule(model: Any, tokenizer: Any) -> None:
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize(
    "change",
    [changed_weight, changed_norm, changed_end, changed_token, changed_special, changed_rule],
)
def test_another_model_is_measured_anew(
    loaded: Loaded,
    tmp_path: Path,
    added: list[int],
    make: Callable[..., Metric],
    change: Callable[[Any, Any], None],
):
    evaluate(loaded, [make(*TEXTS)], cache=tmp_path)
    assert sorted(added) == [0, 1, 2]
    other = Loaded(deepcopy(loaded.model), deepcopy(loaded.tokenizer), "other")
    evaluate(other, [make(*TEXTS)], cache=tmp_path)
    assert len(added) == 3  # a copy of equal content, under another name
    change(other.model, other.tokenizer)
    evaluate(other, [make(*TEXTS)], cache=tmp_path)
    assert len(added) == 6
    assert len(list(tmp_path.iterdir())) == 2


def test_another_precision_is_measured_anew(loaded: Loaded, tmp_path: Path, added: list[int]):
    wide = loaded.model.bfloat16().float()
    hashes, losses = [], []
    for model in (wide, deepcopy(wide).bfloat16(), wide):
        found = evaluate(Loaded(model, loaded.tokenizer, ""), [of_documents(*TEXTS)],
                         cache=tmp_path)  # fmt: skip
        hashes.append(model_hash(model))
        losses.append(found["perplexity"].columns["loss"].tolist())
    assert len(set(hashes)) == 1  # the weights are equal, what is computed with them is not
    assert losses[0] == losses[2] != losses[1]
    assert len(added) == 6


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize(
    "texts", [TEXTS[:2], TEXTS[::-1], (*TEXTS[:2], "The mat"), (*TEXTS[:2], "the mat .")]
)
def test_other_texts_are_measured_anew(
    loaded: Loaded,
    tmp_path: Path,
    added: list[int],
    make: Callable[..., Metric],
    texts: Sequence[str],
):
    evaluate(loaded, [make(*TEXTS)], cache=tmp_path)
    evaluate(loaded, [make(*texts)], cache=tmp_path)
    assert len(added) == 3 + len(texts)


def test_other_protocols_are_measured_anew(loaded: Loaded, tmp_path: Path, added: list[int]):
    text = [" ".join(TEXTS * 4)]
    metrics = [
        Perplexity(text, how, window)
        for how in ("window", "stride", "document")
        for window in (4, 32, 5)
    ] + [
        Repetition(TEXTS, Decoding(k, n, seed=seed), max_empty=1)
        for k, n, seed in ((0, 3, 0), (0, 4, 0), (1, 3, 0), (2, 3, 0), (1, 3, 1))
    ]
    for count, metric in enumerate(metrics, 1):
        before = len(added)
        outcomes = evaluate(loaded, [metric], cache=tmp_path).outcomes
        assert len(added) - before == len(outcomes[metric.name].units)
        assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("second", ["THE cat", "the  cat\n"])
def test_texts_that_collide_never_share_rows(
    loaded: Loaded, tmp_path: Path, make: Callable[..., Metric], second: str
):
    first = "the cat"
    assert text_hash(first) == text_hash(second)
    expected = [evaluate(loaded, [make(text)]) for text in (first, second)]
    for text, alone in [*zip((first, second), expected, strict=True)] * 2:
        found = evaluate(loaded, [make(text)], cache=tmp_path)
        for name, outcome in alone.outcomes.items():
            assert found[name].units == outcome.units
            for key, values in outcome.columns.items():
                np.testing.assert_array_equal(found[name].columns[key], values)
    if make is of_documents:
        sizes = [e["perplexity"].columns["bytes"].tolist() for e in expected]
        assert sizes == [[len(first)], [len(second)]]
