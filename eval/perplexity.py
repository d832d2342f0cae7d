"""Perplexity under three protocols, with what each document or window lost.

| protocol | windows | scored |
|---|---|---|
| `window` | the joined text, one tokenizer call, cut without overlap; the rest is dropped | all but each window's first token (GPTQ, SparseGPT, Wanda) |
| `stride` | the joined text, windows that advance by half their length | every token but the first, once, with at least half a window of context (HF's documentation) |
| `document` | each document alone, behind BOS (else EOS); long ones rolled without overlap | every token, once (lm-eval's `loglikelihood_rolling`) |
"""  # noqa: E501  (a table)

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from ..core.data import Sample, collate
from ..core.errors import ExciseError, finer, look_up
from ..core.families import family_of
from ..core.loading import Loaded
from ..core.statistics import Measure, Statistic
from ..core.texts import Lines, line_hashes, text_hash
from .outcome import Metric, Outcome, Plan, Row, check_mode, column


WINDOW = 1024

_WORD_START = re.compile(r"(?<!\S)\S")

STATISTICS = (
    Statistic("token_perplexity", "loss", "tokens", "exp", within=(1, math.inf)),
    Statistic("word_perplexity", "loss", "words", "exp", within=(1, math.inf)),
    Statistic("byte_perplexity", "loss", "bytes", "exp", within=(1, math.inf)),
    Statistic("bits_per_byte", "loss", "bytes", scale=1 / math.log(2), within=(0, math.inf)),
)


@dataclass(frozen=True)
class Piece:
    """One window: what the model reads, and which of the tokens behind its first are scored."""

    ids: tuple[int, ...]
    scored: int
    """How many of the last tokens count."""


@dataclass(frozen=True)
class Unit:
    """What one loss belongs to: a window, or a document of several windows."""

    pieces: tuple[Piece, ...]
    words: int
    bytes: int
    hash: str
    lines: tuple[str, ...]
    """Hashes of its lines, by which text is known again that chose an edit."""


def windows(tokenizer: Any, documents: Sequence[str], window: int, stride: int) -> Iterator[Unit]:
    """Cut the joined text into windows that advance by `stride` tokens.

    A window scores the tokens that no earlier one scored. Where stride and window are equal, an
    incomplete last window is left out; otherwise it is kept, as its tokens have context.

    Raises:
        ExciseError: The tokenizer is a slow one, which does not know where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise ExciseError(
            "words and bytes of a window need a fast tokenizer: save the tokenizer with "
            "tokenizer.json (excise eval can do without by --protocol document)"
        )
    text = "\n\n".join(documents)
    encoded = tokenizer(text, verbose=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    lines = Lines(text)
    done = 1  # tokens scored so far; the first has no context
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        if (stride == window and end - start < window) or end <= done:
            return
        done = max(done, start + 1)
        # a character of several tokens belongs to its first; special tokens stand at 0
        a = max(offsets[done - 1][1], offsets[done][0])
        b = max(stop for _, stop in offsets[done:end])
        words = sum(1 for _ in _WORD_START.finditer(text, a, b))
        piece = Piece(tuple(ids[start:end]), end - done)
        yield Unit((piece,), words, len(text[a:b].encode()), text_hash(text[a:b]), lines.of(a, b))
        done = end


def rolled(tokenizer: Any, documents: Sequence[str], window: int) -> Iterator[Unit]:
    """Cut each document as lm-eval's rolling log-likelihood does.

    The last window of a long document reaches back, so that it is full.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ExciseError(
            "the tokenizer has neither BOS nor EOS, which stands before a document: "
            "use --protocol window"
        )
    for text in documents:
        ids = [first, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        pieces = []
        for start in range(1, len(ids), window):
            end = min(start + window, len(ids))
            pieces.append(Piece(tuple(ids[max(0, end - window - 1) : end]), end - start))
        if pieces:
            words, size = count_words(text), len(text.encode())
            yield Unit(tuple(pieces), words, size, text_hash(text), tuple(line_hashes(text)))


def count_words(text: str) -> int:
    """Count words as lm-eval does: pieces between white space, empty ends included."""
    return len(re.split(r"\s+", text))


@dataclass(frozen=True)
class Perplexity(Metric):
    """Perplexity of a text; a unit is a window, or a document."""

    documents: Sequence[str]
    protocol: Literal["window", "stride", "document"] = "window"
    window: int = WINDOW
    """Most tokens the model reads at once."""
    limit: int | None = None
    """Use only the first windows or documents."""
    batch_size: int | None = None
    """Windows per pass; by default as many as make about 2,048 tokens."""
    source: str = "text"
    spread: bool = False
    """Whether `limit` takes units from all over the text; the first ones may be of one article."""
    name: str = field(default="perplexity", init=False)

    def __post_init__(self):
        if isinstance(self.documents, str):
            raise ExciseError("documents is one text: give a list of them, as in [text]")

    def plan(self, loaded: Loaded) -> Plan:
        """Tokenise and cut.

        Raises:
            ExciseError: A window too short or long, or a text shorter than one window.
        """
        units = self._units(loaded.model.config, loaded.tokenizer)
        how = {
            "window": f"joined text, window={self.window}, non-overlapping",
            "stride": f"joined text, window={self.window}, stride {self.window // 2}",
            "document": f"each document behind BOS, window={self.window}, rolling",
        }[self.protocol]
        spread = ", spread over the text" if self.spread else ""
        return Plan(
            protocol=f"{self.protocol}: {how}{spread}",
            units=tuple(unit.hash for unit in units),
            inputs=units,
            identity={"pieces": _fingerprint(units)},
            tokens=self._batch() * self.window,
        )

    def _units(self, config: Any, tokenizer: Any) -> list[Unit]:
        cuts = {
            "window": lambda: windows(tokenizer, self.documents, self.window, self.window),
            "stride": lambda: windows(tokenizer, self.documents, self.window, self.window // 2),
            "document": lambda: rolled(tokenizer, list(dict.fromkeys(self.documents)), self.window),
        }
        cut = look_up("protocol", self.protocol, cuts)
        most = getattr(config, "max_position_embeddings", self.window)
        if self.window < 2:
            raise ExciseError(f"window is {self.window}: give at least 2 tokens")
        if self.window > most:
            raise ExciseError(f"window {self.window} is longer than the model's {most} positions")
        if self.limit is not None and self.limit < 1:
            raise ExciseError(f"limit is {self.limit}: give at least 1")
        units = list(cut())
        if not units:
            n = sum(len(tokenizer(text, verbose=False)["input_ids"]) for text in self.documents)
            raise ExciseError(f"the text has {n} tokens, less than one window of {self.window}")
        if self.spread and self.limit is not None and self.limit < len(units):
            return [units[i * len(units) // self.limit] for i in range(self.limit)]
        return units[: self.limit]

    def _batch(self) -> int:
        return self.batch_size or max(1, 2048 // self.window)

    def rows(
        self, loaded: Loaded, plan: Plan, todo: Sequence[int], progress: bool
    ) -> Iterator[tuple[int, Row]]:
        """Sum the losses of each unit's scored tokens, in nats.

        Raises:
            ExciseError: A loss is NaN or infinite.
        """
        units: Sequence[Unit] = plan.inputs
        queue = [(index, piece) for index in todo for piece in units[index].pieces]
        losses = dict.fromkeys(todo, 0.0)
        left = {index: len(units[index].pieces) for index in todo}
        bar = tqdm(total=len(todo), desc=self.name, disable=None if progress else True)
        with bar:
            for start in range(0, len(queue), self._batch()):
                part = queue[start : start + self._batch()]
                found = piece_losses(loaded.model, [piece for _, piece in part])
                for (index, _), loss in zip(part, found, strict=True):
                    losses[index] += loss
                    left[index] -= 1
                    if left[index] == 0:
                        bar.update()
                        unit = units[index]
                        scored = sum(piece.scored for piece in unit.pieces)
                        yield index, {"loss": losses[index], "tokens": scored,
                                      "words": unit.words, "bytes": unit.bytes}  # fmt: skip

    def outcomes(self, loaded: Loaded, plan: Plan, rows: Sequence[Row]) -> list[Outcome]:
        """Make the statistics: four, or three where a window holds the beginning of no word."""
        columns = {name: column(rows, name) for name in ("loss", "tokens", "words", "bytes")}
        facts = {"text": self.source, "units_without_words": int((columns["words"] == 0).sum())}
        made = tuple(s for s in STATISTICS if columns[s.per or "tokens"].all())
        lines = frozenset(line for unit in plan.inputs for line in unit.lines)
        return [Outcome(self.name, plan.protocol, made, plan.units, columns, facts, compared=lines)]


def piece_losses(model: Any, pieces: Sequence[Piece]) -> list[float]:
    """Return the summed loss of each piece's scored tokens, in nats.

    Padding, its side and the other pieces of a batch change nothing (but the last bits).
    """
    batch = collate([Sample(piece.ids[:-1]) for piece in pieces]).to(model.device)
    with torch.no_grad():
        logits = model(**batch.model_inputs(family_of(model).passes_position_ids)).logits
    losses = []
    for row, piece in enumerate(pieces):
        end = len(piece.ids) - 1
        scores = logits[row, end - piece.scored : end].float()
        labels = torch.tensor(piece.ids[-piece.scored :], device=scores.device)
        losses.append(cross_entropy(scores, labels, reduction="none").double().sum().item())
    if not all(map(math.isfinite, losses)):
        raise ExciseError(f"the loss is NaN or infinite: {finer(logits.dtype)}")
    return losses


def perplexity(
    model: Any, tokenizer: Any, text: str, window: int = WINDOW, limit: int | None = None
) -> Measure:
    """Measure token perplexity over non-overlapping windows.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        text: The text.
        window: Tokens per window.
        limit: Use only the first windows.

    Returns:
        The perplexity; the interval says how it would vary with other windows of such text.

    Raises:
        ExciseError: The text is shorter than one window, the model's loss is not finite, or the
            model is in training mode.
    """
    check_mode(model)
    loaded, metric = Loaded(model, tokenizer, ""), Perplexity([text], "window", window, limit)
    plan = metric.plan(loaded)
    rows = dict(metric.rows(loaded, plan, range(len(plan.units)), progress=False))
    return metric.outcomes(loaded, plan, [rows[i] for i in range(len(rows))])[0].headline


def _fingerprint(units: Sequence[Unit]) -> str:
    """Return a hash of all that the rows hold, as texts that differ can have equal tokens."""
    pieces = [[(piece.ids, piece.scored) for piece in unit.pieces] for unit in units]
    return text_hash(repr((pieces, [(unit.words, unit.bytes) for unit in units])))
