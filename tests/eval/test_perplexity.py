"""Perplexity under its three protocols against plain loops, and what counts as word and byte."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from excise.core.errors import ExciseError
from excise.core.loading import Loaded
from excise.eval.outcome import Outcome
from excise.eval.perplexity import (
    Perplexity,
    Piece,
    Unit,
    count_words,
    perplexity,
    piece_losses,
    rolled,
    windows,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


WORDS = ("Mary", "John", "gave", "the", "book", "to", "and", ".")
FAMILIES = ("llama-gqa", "opt", "opt-350m", "gemma3")

Scored = tuple[list[int], int]
"""What the model reads, its last token only as a label, and how many of the last tokens count."""


def text_of(words: int, seed: int = 1) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def slow_loss(model: Any, ids: list[int], scored: int) -> float:
    """Sum the losses of the last tokens, token by token, without batch or padding."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    total = 0.0
    for position in range(len(ids) - scored, len(ids)):
        row = logits[position - 1]
        total -= float(row[ids[position]] - torch.logsumexp(row, 0))
    return total


def slow_windows(ids: list[int], window: int) -> Iterator[Scored]:
    """Cut as GPTQ, SparseGPT and Wanda do."""
    for i in range(len(ids) // window):
        yield ids[i * window : (i + 1) * window], window - 1


def slow_stride(ids: list[int], window: int) -> Iterator[Scored]:
    """Cut as the example in HF's documentation of perplexity does; its loss is of shifted labels.

    That is why the very first token, which has a label of its own, is not scored.
    """
    previous = 0
    for begin in range(0, len(ids), window // 2):
        end = min(begin + window, len(ids))
        labels = end - previous
        yield ids[begin:end], min(labels, end - begin - 1)
        previous = end
        if end == len(ids):
            break


def slow_rolled(tokens: list[int], first: int, window: int) -> Iterator[Scored]:
    """Cut as lm-eval's `get_rolling_token_windows` with context 1, made disjoint, is defined."""
    head = tokens[:window]
    yield [first, *head], len(head)
    predicted = len(head)
    while predicted < len(tokens):
        stop = min(predicted + window, len(tokens))
        read, wanted = tokens[stop - window - 1 : stop - 1], tokens[predicted:stop]
        context = read[: len(read) - (len(wanted) - 1)]
        yield context + wanted, len(wanted)
        predicted = stop


def measured(model: Any, tokenizer: Any, documents: Sequence[str], *how: Any) -> Outcome:
    loaded, metric = Loaded(model, tokenizer, "tiny"), Perplexity(documents, *how)
    plan = metric.plan(loaded)
    rows = dict(metric.rows(loaded, plan, range(len(plan.units)), progress=False))
    (outcome,) = metric.outcomes(loaded, plan, [rows[i] for i in range(len(plan.units))])
    return outcome


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("window", [2, 16, 37])
def test_windows_and_strides_equal_a_plain_loop(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str, window: int
):
    model, text = tiny(kind), text_of(200)
    ids = tiny_tokenizer(text)["input_ids"]
    assert len(ids) == 201
    for protocol, cut in (("window", slow_windows), ("stride", slow_stride)):
        found = measured(model, tiny_tokenizer, [text], protocol, window)
        pieces = list(cut(ids, window))
        losses = [slow_loss(model, *piece) for piece in pieces]
        scored = [piece[1] for piece in pieces]
        assert found.columns["loss"].tolist() == pytest.approx(losses, rel=1e-5, abs=1e-5)
        assert found.columns["tokens"].tolist() == scored
        assert found.columns["words"].tolist() == scored  # each token is a word here
        value = found.measures["token_perplexity"]
        assert value.value == pytest.approx(math.exp(sum(losses) / sum(scored)), rel=1e-5)
        assert value.ci[0] < value.value < value.ci[1]
        assert found.protocol.startswith(f"{protocol}: joined text, window={window}")
        if protocol == "stride":
            assert sum(scored) == 200  # all but the first, once


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("window", [2, 7, 512])
def test_documents_equal_lm_evals_rolling_windows(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str, window: int
):
    model = tiny(kind)
    documents = [text_of(n, seed=n) for n in (1, 7, 8, 14, 15, 23, 2 if window < 512 else 700)]
    found = measured(model, tiny_tokenizer, documents, "document", window)
    total = 0.0
    for index, text in enumerate(documents):
        tokens = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = list(slow_rolled(tokens, tiny_tokenizer.bos_token_id, window))
        assert sum(scored for _, scored in pieces) == len(tokens)
        loss = sum(slow_loss(model, *piece) for piece in pieces)
        assert found.columns["loss"][index] == pytest.approx(loss, rel=1e-5)
        total += loss
    words = sum(len(text.split()) for text in documents)
    size = sum(len(text.encode()) for text in documents)
    expected = {
        "token_perplexity": math.exp(total / words),
        "word_perplexity": math.exp(total / words),
        "byte_perplexity": math.exp(total / size),
        "bits_per_byte": total / size / math.log(2),
    }
    assert {name: m.value for name, m in found.measures.items()} == pytest.approx(expected, 1e-5)


def test_rolling_windows_are_those_of_lm_eval(tiny_tokenizer: Any):
    utils = pytest.importorskip("lm_eval.utils")
    for n in range(1, 40):
        tokens = tiny_tokenizer(text_of(n), add_special_tokens=False)["input_ids"]
        for window in (2, 5, 8):
            theirs = utils.get_rolling_token_windows(tokens, 1, window, 1)
            pairs = [(len(b), a + b[-1:]) for a, b in theirs]
            (unit,) = rolled(tiny_tokenizer, [text_of(n)], window)
            assert [(piece.scored, list(piece.ids)) for piece in unit.pieces] == pairs


@pytest.mark.parametrize("kind", FAMILIES)
def test_batches_and_padding_change_nothing(
    tiny: Callable[[str], Any], tiny_tokenizer: Any, kind: str
):
    model, documents = tiny(kind), [text_of(n, n) for n in (30, 3, 1, 17, 64, 9)]
    each = [measured(model, tiny_tokenizer, documents, "document", 20, None, size)
            for size in (1, 2, 5, 100, None)]  # fmt: skip
    for other in each[1:]:
        np.testing.assert_allclose(other.columns["loss"], each[0].columns["loss"], rtol=1e-5)
    pieces = [Piece(tuple(range(3, 3 + n)), scored) for n, scored in ((2, 1), (30, 29), (9, 4))]
    alone = [piece_losses(model, [piece])[0] for piece in pieces]
    assert alone == pytest.approx([slow_loss(model, list(p.ids), p.scored) for p in pieces], 1e-5)
    assert piece_losses(model, pieces) == pytest.approx(alone, rel=1e-5)
    assert piece_losses(model, pieces[::-1]) == pytest.approx(alone[::-1], rel=1e-5)


@pytest.fixture(scope="module")
def bytewise() -> Any:
    """Return a tokenizer of single bytes, without special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def counts(units: Iterator[Unit]) -> list[tuple[int, int, int]]:
    return [(unit.pieces[0].scored, unit.words, unit.bytes) for unit in units]


def test_words_and_bytes_of_a_window(bytewise: Any):
    # bytes: a b _ c d e _ f g h i, windows of 4 score "b_c", "e_f" and, of the rest, nothing
    assert counts(windows(bytewise, ["ab cde fghi"], 4, 4)) == [(3, 1, 3), (3, 1, 3)]
    # by strides of 2: "b_c", "de", "_f", "gh", "i"; only c and f begin words
    strides = [(3, 1, 3), (2, 0, 2), (2, 1, 2), (2, 0, 2), (1, 0, 1)]
    assert counts(windows(bytewise, ["ab cde fghi"], 4, 2)) == strides
    # documents are joined by an empty line
    assert counts(windows(bytewise, ["a", "b c"], 6, 6)) == [(5, 2, 5)]


def test_bytes_of_characters_of_several_tokens(bytewise: Any):
    text = "añ 日本 😀x"  # 1 + 2 + 1 + 3 + 3 + 1 + 4 + 1 bytes
    assert len(bytewise(text)["input_ids"]) == len(text.encode()) == 16
    assert counts(windows(bytewise, [text], 16, 16)) == [(15, 2, 15)]
    # windows of 4 bytes score: the rest of "añ_"; two bytes of 日 behind its first and the first
    # of 本, which stands for all three; a blank and two bytes of 😀; and x
    assert [unit.bytes for unit in windows(bytewise, [text], 4, 4)] == [3, 3, 5, 1]
    for stride in (1, 2, 3):
        units = list(windows(bytewise, [text], 2 * stride, stride))
        assert sum(unit.pieces[0].scored for unit in units) == 15
        assert sum(unit.bytes for unit in units) == 15
        assert sum(unit.words for unit in units) == 2


def test_special_tokens_at_both_ends_are_no_bytes(bytewise: Any):
    tokenizer = Tokenizer.from_str(bytewise.backend_tokenizer.to_str())
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    both = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert counts(windows(both, ["ab cd"], 7, 7)) == [(6, 2, 5)]


def test_a_text_without_words_has_no_word_perplexity(tiny_llama: Any, tiny_tokenizer: Any):
    found = measured(tiny_llama, tiny_tokenizer, ["the," * 40], "window", 8)
    assert list(found.measures) == ["token_perplexity", "byte_perplexity", "bits_per_byte"]
    assert found.columns["words"].tolist() == [1] + [0] * 9
    assert found.facts["units_without_words"] == 9


def test_words_of_documents_are_those_of_lm_eval(tiny_tokenizer: Any):
    assert [count_words(text) for text in ("", "a", "a b", " a\n b ", "日本 ñ")] == [1, 1, 2, 4, 2]
    units = list(rolled(tiny_tokenizer, ["the  mat ", "\n", "ñ cat"], 16))
    assert [(unit.words, unit.bytes) for unit in units] == [(3, 9), (2, 6)]


def test_short_texts(tiny_llama: Any, tiny_tokenizer: Any):
    one = slow_loss(tiny_llama, tiny_tokenizer("mat")["input_ids"], 1)
    for protocol in ("stride", "document"):  # shorter than a window, all of it counts
        found = measured(tiny_llama, tiny_tokenizer, ["mat"], protocol, 64)
        assert found.headline.value == pytest.approx(math.exp(one), rel=1e-5)
        assert found.headline.ci == (-math.inf, math.inf)


def test_what_stands_before_a_document(bytewise: Any):
    tokenizer = deepcopy(bytewise)
    with pytest.raises(ExciseError, match="neither BOS nor EOS"):
        list(rolled(tokenizer, ["ab"], 8))
    ids = tuple(tokenizer("ab")["input_ids"])
    for name, token in (("eos_token", "e"), ("bos_token", "b")):  # BOS goes before EOS
        setattr(tokenizer, name, token)
        (unit,) = rolled(tokenizer, ["ab"], 8)
        assert unit.pieces == (Piece((*tokenizer(token)["input_ids"], *ids), 2),)


def test_slow_tokenizers_have_no_windows():
    with pytest.raises(ExciseError, match=r"fast tokenizer: .*--protocol document"):
        list(windows(SimpleNamespace(is_fast=False), ["a b"], 2, 2))


def test_the_function(tiny_llama: Any, tiny_tokenizer: Any):
    text, draw = text_of(300), torch.get_rng_state()
    found = perplexity(tiny_llama, tiny_tokenizer, text, 20)
    assert perplexity(tiny_llama, tiny_tokenizer, text, 20) == found
    assert torch.equal(draw, torch.get_rng_state())
    assert found == measured(tiny_llama, tiny_tokenizer, [text], "window", 20).headline
    few = perplexity(tiny_llama, tiny_tokenizer, text, 20, limit=3)
    short = perplexity(tiny_llama, tiny_tokenizer, text_of(300)[: len(text_of(60))], 20)
    assert few.n == 3
    assert few.value == pytest.approx(short.value, rel=1e-6)


def test_windows_are_spread_over_the_text_where_that_is_asked(tiny_llama: Any, tiny_tokenizer: Any):
    loaded = Loaded(tiny_llama, tiny_tokenizer, "")
    text = text_of(300)

    def planned(**options: Any) -> Any:
        return Perplexity([text], window=20, **options).plan(loaded)

    whole, few = planned(), planned(limit=4, spread=True)
    n = len(whole.units)
    assert n > 8
    assert few.units == tuple(whole.units[i * n // 4] for i in range(4))
    assert "spread" in few.protocol
    assert planned(limit=n + 1, spread=True).units == whole.units
    assert planned(limit=4).units == whole.units[:4]


@pytest.mark.parametrize(
    ("words", "how", "named"),
    [
        (50, ("window", 1), "window is 1: give at least 2"),
        (50, ("window", 513), "window 513 is longer than the model's 512 positions"),
        (50, ("window", 64), "51 tokens, less than one window of 64"),
        (50, ("document", 8, 0), "limit is 0"),
        (50, ("windows", 8), "did you mean 'window'"),
        (0, ("document", 8), "1 tokens, less than"),
        (0, ("stride", 8), "1 tokens, less than"),
        (None, ("window", 8), "0 tokens"),
        (None, ("document", 8), "0 tokens"),
    ],
)
def test_what_cannot_be_measured(
    tiny_opt: Any, tiny_tokenizer: Any, words: int | None, how: tuple[Any, ...], named: str
):
    loaded = Loaded(tiny_opt, tiny_tokenizer, "tiny")
    with pytest.raises(ExciseError, match=named):
        Perplexity([] if words is None else [text_of(words)], *how).plan(loaded)


def test_models_that_cannot_be_measured(tiny_opt: Any, tiny_tokenizer: Any):
    with pytest.raises(ExciseError, match=r"model\.eval"):
        perplexity(tiny_opt.train(), tiny_tokenizer, text_of(60), 16)
    with torch.no_grad():
        tiny_opt.eval().model.decoder.final_layer_norm.weight[0] = math.nan
    with pytest.raises(ExciseError, match="NaN or infinite"):
        perplexity(tiny_opt, tiny_tokenizer, text_of(60), 16)
