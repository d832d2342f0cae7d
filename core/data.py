"""Reference data: prompts and texts on their way to padded batches."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import ExciseError, first_line, shown, unknown_name
from .files.reading import lines_of, parse_json, read_text
from .texts import Lines, text_hash


if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row of a prompts file: what the model reads, and what it should and should not say."""

    clean: str
    counterfactual: str | None = None
    answer: str | None = None
    wrong: str | None = None


@dataclass(frozen=True)
class Sample:
    """One tokenised reference sample."""

    input_ids: tuple[int, ...]
    answer: int | None = None
    """Token that should follow."""
    wrong: int | None = None
    """Token that should not."""
    continuation: int = 0
    """How many of the last tokens are a teacher-forced continuation."""
    known_by: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The `text_hash` of the prompt, or of each line that is in it; none where it is unknown."""


@dataclass(frozen=True)
class Batch:
    """Padded samples; rows are independent of each other and of the padding side."""

    input_ids: "Tensor"
    """(batch, seq) int64"""
    attention_mask: "Tensor"
    """(batch, seq) int64, 1 for tokens and 0 for padding"""
    answers: "Tensor | None" = None
    """(batch,) int64"""
    wrongs: "Tensor | None" = None
    """(batch,) int64"""
    continuation: "Tensor | None" = None
    """(batch, seq) bool, true at the tokens of the continuation"""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def last(self) -> "Tensor":
        """Position of each row's last token, (batch,)."""
        return self.input_ids.shape[1] - 1 - self.attention_mask.flip(1).argmax(1)

    @property
    def asked(self) -> "Tensor":
        """Each row's answer and wrong answer (-1: none), and length of continuation, (batch, 3)."""
        import torch

        none = torch.full_like(self.input_ids[:, 0], -1)
        rows = none + 1 if self.continuation is None else self.continuation.sum(1)
        return torch.stack(
            [*(none if t is None else t for t in (self.answers, self.wrongs)), rows], 1
        )

    @property
    def first(self) -> "Tensor":
        """Position of each row's first token, (batch,)."""
        return self.attention_mask.argmax(1)

    def to(self, device: Any) -> "Batch":
        """Return this batch on another device."""
        return Batch(*(None if t is None else t.to(device) for t in vars(self).values()))  # type: ignore[arg-type]

    def model_inputs(self, explicit_positions: bool) -> "dict[str, Tensor | bool]":
        """Return the keyword arguments of a forward pass.

        Args:
            explicit_positions: Whether the model needs to be told the positions of padded rows.
        """
        inputs: dict[str, Tensor | bool] = {"input_ids": self.input_ids, "use_cache": False}
        if not bool(self.attention_mask.all()):
            inputs["attention_mask"] = self.attention_mask
            if explicit_positions:
                inputs["position_ids"] = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        return inputs


def collate(samples: Sequence[Sample], side: Literal["left", "right"] = "right") -> Batch:
    """Pad samples to one batch.

    Args:
        samples: At least one sample. Answers are kept if every sample has one.
        side: Where the padding goes. Padding is masked, so its token (0) does not matter.
    """
    import torch

    width = max(len(sample.input_ids) for sample in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    continued = torch.zeros_like(ids, dtype=torch.bool)
    for row, sample in enumerate(samples):
        n = len(sample.input_ids)
        start = width - n if side == "left" else 0
        ids[row, start : start + n] = torch.tensor(sample.input_ids)
        mask[row, start : start + n] = 1
        continued[row, start + n - sample.continuation : start + n] = True

    def tokens(values: list[int | None]) -> "Tensor | None":
        return None if None in values else torch.tensor(values)

    return Batch(
        ids,
        mask,
        tokens([sample.answer for sample in samples]),
        tokens([sample.wrong for sample in samples]),
        continued if continued.any() else None,
    )


def batches(samples: Sequence[Sample], batch_size: int) -> Iterator[Batch]:
    """Iterate over padded batches in the given order."""
    for start in range(0, len(samples), batch_size):
        yield collate(samples[start : start + batch_size])


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSONL prompts file.

    Args:
        path: Rows `{"clean": str, "counterfactual": str?, "answer": str?, "wrong": str?}`.

    Raises:
        ExciseError: Missing or empty file, broken JSON, unknown or missing key; names the line.
    """
    text = read_text(path)
    rows = ((f"{path}, line {number}", line) for number, line in lines_of(text))
    prompts = [prompt_of(parse_json(line, where), where) for where, line in rows]
    if not prompts:
        raise ExciseError(f"{path} holds no prompts: write one JSON object per line")
    return prompts


def prompt_of(row: Any, where: str) -> Prompt:
    """Return the prompt that a row of a file, or a dictionary of a caller, stands for.

    Args:
        row: `{"clean": str, "counterfactual": str?, "answer": str?, "wrong": str?}`.
        where: Its place, for the message.

    Raises:
        ExciseError: It is something else, has an unknown key, or a value that is no text.
    """
    if not isinstance(row, dict) or not isinstance(row.get("clean"), str) or not row["clean"]:
        raise ExciseError(f'{where}: a row needs {{"clean": "some text", ...}}, got {shown(row)}')
    if unknown := sorted(set(map(str, row)) - set(Prompt.__dataclass_fields__)):
        raise ExciseError(f"{where}: {unknown_name('key', unknown[0], Prompt.__annotations__)}")
    fields: dict[str, Any] = {key: row.get(key) for key in Prompt.__dataclass_fields__}
    if bad := [key for key, value in fields.items() if not isinstance(value, str | None)]:
        raise ExciseError(f"{where}: {bad[0]!r} is {shown(fields[bad[0]])}, and should be text")
    return Prompt(**fields)


def dataset_text(name: str, limit: int | None = None, keys: Sequence[str] = ("text",)) -> list[str]:
    """Read the texts of a dataset by its `datasets` id (or folder), streaming.

    Args:
        name: `id`, `id:config` or `id:config:split` (split `train` if not given).
        limit: How many texts at most.
        keys: Columns to look for, in this order, before the first that holds text. A column may
            hold objects with a `text`, as the prompts of RealToxicityPrompts do.

    Raises:
        ExciseError: The dataset cannot be loaded, or has no column of text.
    """
    from itertools import islice

    import datasets

    source, config, split = (*name.split(":"), "", "")[:3]
    try:
        rows = datasets.load_dataset(source, config or None, split=split or "train", streaming=True)
        texts = []
        for row in islice(rows, limit):
            named = (row_text(row, key) for key in (*keys, *row))
            found = next((text for text in named if text is not None), None)
            if found is None:
                raise ExciseError(f"dataset {name} has no column of text, only {', '.join(row)}")
            texts.append(found)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExciseError(f"dataset {name!r} cannot be loaded: {first_line(error)}") from error
    if not any(text.strip() for text in texts):
        raise ExciseError(f"dataset {name!r} holds no text in split {split or 'train'!r}")
    return texts


def row_text(row: Any, key: str) -> str | None:
    """Return the text a row holds under a key, itself or as the `text` of an object."""
    found = row.get(key) if isinstance(row, dict) else None
    found = found.get("text") if isinstance(found, dict) else found
    return found if isinstance(found, str) else None


def encode_prompts(tokenizer: Any, prompts: Sequence[Prompt]) -> list[Sample]:
    """Tokenise prompts whose answers are one token each.

    Args:
        tokenizer: A transformers tokenizer.
        prompts: Answers are read as they continue the prompt: a leading space is added if the
            text has none.

    Raises:
        ExciseError: No prompts, or an answer of several tokens (names it and its tokens).
    """
    if not prompts:
        raise ExciseError("there are no prompts to explain: give at least one")
    return [
        Sample(
            tuple(tokenizer(prompt.clean)["input_ids"]),
            answer=single_token(tokenizer, prompt.answer, prompt.clean),
            wrong=single_token(tokenizer, prompt.wrong, prompt.clean),
            known_by=(text_hash(prompt.clean),),
        )
        for prompt in prompts
    ]


def encode_continuations(tokenizer: Any, prompts: Sequence[Prompt]) -> list[Sample]:
    """Tokenise prompts with their whole answers appended, for a teacher-forced target.

    Raises:
        ExciseError: A prompt without an answer.
    """
    samples = []
    for prompt in prompts:
        if not prompt.answer:
            raise ExciseError(f"prompt {prompt.clean[:60]!r} has no 'answer' to continue with")
        head = tokenizer(prompt.clean)["input_ids"]
        tail = answer_tokens(tokenizer, prompt.answer, prompt.clean)
        known_by = (text_hash(prompt.clean),)
        samples.append(Sample((*head, *tail), continuation=len(tail), known_by=known_by))
    return samples


def as_continuation(text: str) -> str:
    """Return an answer as it stands behind a prompt: with a leading space."""
    return text if text[:1].isspace() else f" {text}"


def answer_tokens(tokenizer: Any, text: str, prompt: str = "the") -> list[int]:
    """Return the tokens of an answer as they stand behind a prompt.

    They are found by difference, since some tokenizers (Llama 2, Mistral) put a blank of its own
    before any text that is tokenised alone.

    Raises:
        ExciseError: The prompt's last token changes with what follows it.
    """
    head = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + as_continuation(text))["input_ids"]
    if whole[: len(head)] != head:
        raise ExciseError(
            f"the tokens of {prompt[-40:]!r} change when {shown(text)} follows: "
            "end the prompt with a whole word, without white space behind it"
        )
    return whole[len(head) :]


def single_token(tokenizer: Any, text: str | None, prompt: str = "the") -> int | None:
    """Return the one token of an answer behind a prompt.

    Raises:
        ExciseError: The answer has several tokens, or is not in the vocabulary.
    """
    if text is None:
        return None
    ids = answer_tokens(tokenizer, text, prompt)
    if ids == [tokenizer.unk_token_id]:
        raise ExciseError(f"answer {shown(text)} is unknown to the tokenizer: choose another word")
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ExciseError(
            f"answer {shown(text)} is {len(ids)} tokens {shown(pieces)} and one is needed: choose "
            "another word, or explain the whole answer with --target continuation"
        )
    return ids[0]


def encode_texts(
    tokenizer: Any, texts: Iterable[str], n: int, length: int, seed: int | None = None
) -> list[Sample]:
    """Tokenise texts into samples of equal length: joined, then cut without overlap.

    Args:
        tokenizer: A transformers tokenizer.
        texts: Documents; joined by blank lines.
        n: How many samples.
        length: Tokens per sample.
        seed: Draws them; None takes them evenly spread over the text.

    Raises:
        ExciseError: The text is shorter than one sample, or `n` or `length` is too small.
    """
    if n < 1 or length < 2:
        raise ExciseError(f"samples={n}, length={length}: give at least 1 sample of 2 tokens")
    text = "\n\n".join(texts)
    encoded = tokenizer(text, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    ids, lines = encoded["input_ids"], Lines(text)
    available = len(ids) // length
    if available < 1:
        raise ExciseError(f"the text has {len(ids)} tokens, less than one sample of {length}")
    n = min(n, available)
    chosen = [index * available // n for index in range(n)]
    if seed is not None:
        chosen = random.Random(seed).sample(range(available), n)

    def sample(part: slice) -> Sample:
        places = encoded["offset_mapping"][part] if tokenizer.is_fast else [(0, len(text))]
        first, last = places[0][0], max(stop for _, stop in places)
        return Sample(tuple(ids[part]), known_by=lines.of(first, last))

    return [sample(slice(i * length, (i + 1) * length)) for i in chosen]


def check_length(samples: Iterable[Sample], config: Any) -> None:
    """Refuse samples that are longer than a model can read.

    Raises:
        ExciseError: Names the longest and the model's number of positions.
    """
    longest = max((len(sample.input_ids) for sample in samples), default=0)
    most = getattr(config, "max_position_embeddings", longest)
    if longest > most:
        raise ExciseError(
            f"a sample of {longest} tokens is longer than the model's {most} positions: "
            "give shorter texts, or ask for fewer tokens of each"
        )


def fingerprint(samples: Iterable[Sample]) -> str:
    """Return a short hash of tokenised data: equal data, equal fingerprint."""
    digest = hashlib.sha256()
    for sample in samples:
        tokens = {name: value for name, value in asdict(sample).items() if name != "known_by"}
        digest.update(json.dumps(tokens).encode())
    return digest.hexdigest()[:16]
