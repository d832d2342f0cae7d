"""What a model should not do, as data: undesired and general samples, and what confounds them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...core.data import Sample, encode_texts, fingerprint
from ...core.errors import ExciseError
from ...core.files.reading import lines_of, parse_json, read_text, tsv_rows


PLAIN_SAMPLES = 256
"""Samples of general text beside pairs."""
PLAIN_LENGTH = 64
"""Tokens of one, at least."""
_HEADERS = ("toxic", "undesired")
"""First cell of a TSV's header."""

Examples = str | os.PathLike[str] | Sequence[str | tuple[str, str] | Mapping[str, str]]
"""A file; or a list of texts, of pairs (undesired, neutral), or of rows as in JSONL."""


@dataclass(frozen=True)
class BehaviourSet:
    """Samples that show a behaviour, and samples that do not.

    Each sample's `continuation` says how many of its last tokens are explained.
    """

    name: str
    undesired: tuple[Sample, ...]
    general: tuple[Sample, ...]
    paired: bool
    """Whether `undesired[i]` belongs to `general[i]`: as a neutral paraphrase does."""
    kept: tuple[Sample, ...] = ()
    """Plain text that the model should go on to predict as it does; where there is none, `general`
    is what costs are weighed with."""
    left_out: int = 0
    """Examples of the file that had no token to explain."""

    def __post_init__(self):
        if not self.undesired or not self.general:
            raise ExciseError(
                f"behaviour {self.name!r} has {len(self.undesired)} undesired and "
                f"{len(self.general)} general samples: give at least one of each"
            )
        if self.paired and len(self.undesired) != len(self.general):
            raise ExciseError(
                f"behaviour {self.name!r} is paired, with {len(self.undesired)} undesired and "
                f"{len(self.general)} general samples: give as many of each"
            )
        for sample in (*self.undesired, *self.general, *self.kept):
            if not 0 < sample.continuation < len(sample.input_ids):
                raise ExciseError(
                    f"a sample of behaviour {self.name!r} explains {sample.continuation} of "
                    f"{len(sample.input_ids)} tokens: at least one, and not the first"
                )

    @property
    def fingerprint(self) -> str:
        """A short hash of all samples by what they are for, and whether they are paired."""
        parts = (self.undesired, self.general, self.kept)
        return "-".join([*map(fingerprint, parts), "paired" if self.paired else "apart"])

    @property
    def reference(self) -> tuple[Sample, ...]:
        """What costs are weighed with."""
        return self.kept or self.general


def read_behaviour(
    tokenizer: Any,
    undesired: Examples,
    general: Examples | None = None,
    name: str | None = None,
    *,
    limit: int | None = None,
    length: int = 64,
    n_general: int = 128,
) -> BehaviourSet:
    r"""Read a behaviour from files, or from lists of the same.

    Undesired are a text file (each line an example), JSONL rows `{"prompt": str?, "continuation":
    str}`, or pairs: JSONL rows `{"prompt": str?, "undesired": str, "neutral": str}` or TSV lines
    `undesired\tneutral\t...`, of which the first neutral counts. General is JSONL, too, or a text,
    which is joined and cut into samples as long as the undesired ones. Of pairs the neutral sides
    are general, and the file is what the model should keep, in samples of `PLAIN_LENGTH` tokens.

    Args:
        tokenizer: A transformers tokenizer.
        undesired: The file of examples; its ending (`.jsonl`, `.tsv`, other) says what it is. Or
            the examples: a list of texts, of pairs (undesired, neutral), or of rows as in JSONL.
        general: A file, or a list of texts. May be left out for pairs.
        name: What to call the behaviour; the file's name if None, or `undesired`.
        limit: Use only the first examples.
        length: Tokens of a continuation at most.
        n_general: Samples that a general text is cut into, at most, where there are no pairs.

    Raises:
        ExciseError: A file that is missing or not as above (names the line), or none where one is
            needed.
    """
    rows, where = read_rows(undesired)[:limit], name_of(undesired)
    paired = "neutral" in rows[0]
    name = name or Path(where).stem
    sides = ("undesired", "neutral") if paired else ("undesired",)
    encoded = [[_encoded(tokenizer, row["prompt"], row[s], length) for s in sides] for row in rows]
    usable = [[s for s in row if s] for row in encoded if all(row)]
    if not usable:
        raise ExciseError(f"{where} holds no example with a token to explain behind its first")
    bad = tuple(row[0] for row in usable)
    left_out = len(rows) - len(usable)
    other: tuple[Sample, ...] = ()
    if general is not None:
        # of pairs it is no side of the contrast, so it need not be as short as they are
        n, least = (PLAIN_SAMPLES, PLAIN_LENGTH) if paired else (n_general, 2)
        other = _general(tokenizer, general, bad, length, n, least)
    if paired:
        return BehaviourSet(name, bad, tuple(row[1] for row in usable), True, other, left_out)
    if not other:
        raise ExciseError(f"{where} holds no pairs: give a file of general text, too")
    return BehaviourSet(name, bad, other, False, left_out=left_out)


def encode(tokenizer: Any, prompt: str, continuation: str, length: int = 64) -> Sample:
    """Tokenise a prompt and what follows it.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: May be empty; then all tokens but the first are explained.
        continuation: As it stands behind the prompt; a space is put before a word.
        length: Tokens of the continuation that are kept.

    Raises:
        ExciseError: No token is left to explain.
    """
    joint = continuation
    if prompt and not prompt[-1].isspace() and continuation[:1].isalnum():
        joint = f" {continuation}"
    ids = tokenizer(prompt + joint, verbose=False)["input_ids"]
    head = tokenizer(prompt, verbose=False)["input_ids"] if prompt else []
    # a token over the seam belongs to the continuation
    start = next((i for i, pair in enumerate(zip(head, ids, strict=False)) if len(set(pair)) > 1),
                 min(len(head), len(ids)))  # fmt: skip
    start = max(start, 1)
    ids = tuple(ids[: start + length])
    if len(ids) <= start:
        raise ExciseError("an example has no token to explain behind its first: give longer texts")
    return Sample(ids, continuation=len(ids) - start)


def _encoded(tokenizer: Any, prompt: str, continuation: str, length: int) -> Sample | None:
    try:
        return encode(tokenizer, prompt, continuation, length)
    except ExciseError:  # a text of one token says nothing of what follows
        return None


def plain_samples(tokenizer: Any, texts: Sequence[str], n: int, length: int) -> tuple[Sample, ...]:
    """Cut plain text into samples of equal length, all tokens but the first explained.

    Raises:
        ExciseError: The text is shorter than one sample.
    """
    samples = encode_texts(tokenizer, texts, n, length)
    return tuple(Sample(s.input_ids, continuation=len(s.input_ids) - 1) for s in samples)


def check_sets(behaviour: BehaviourSet) -> list[str]:
    """Look for what could explain a contrast better than the behaviour does.

    Returns:
        Warnings, each with what to do; none if all is well.
    """
    bad, other = behaviour.undesired, behaviour.general
    warnings = []
    fewest = min(len(bad), len(other))
    if behaviour.left_out:
        warnings.append(f"{behaviour.left_out} examples with no token to explain were left out")
    way_out = "cut both to one length" + ("" if behaviour.paired else ", or use pairs")
    if fewest < 30:
        warnings.append(
            f"too few samples to attribute with ({len(bad)} undesired, {len(other)} general): the "
            "ranking is mostly chance; give more, so that there are at least 30 of each"
        )
    for what, sizes in (
        ("continuations", [[s.continuation for s in part] for part in (bad, other)]),
        ("prompts", [[len(s.input_ids) - s.continuation for s in part] for part in (bad, other)]),
    ):
        first, second = map(fmean, sizes)
        if max(first, second) > 1.25 * min(first, second):
            warnings.append(
                f"length: undesired {what} have {first:.1f} tokens and general ones {second:.1f}, "
                f"so the contrast may be one of length; {way_out}"
            )
    if shared := {s.input_ids for s in bad} & {s.input_ids for s in other}:
        warnings.append(
            f"overlap: {len(shared)} samples are in both sets; take them out of one of them"
        )
    if repeated := len(bad) - len({s.input_ids for s in bad}):
        warnings.append(f"{repeated} undesired samples are there more than once; give each once")
    strange = _strange_tokens(bad, other)
    if strange > 0.5 and not behaviour.paired:
        warnings.append(
            f"token frequency: {strange:.0%} of the undesired tokens differ from the general ones "
            "beyond what the sizes of the sets explain, so the contrast may be one of topic; take "
            "general text on the same topics, or use pairs"
        )
    return warnings


def _strange_tokens(bad: Sequence[Sample], other: Sequence[Sample]) -> float:
    """Return the total variation distance of explained tokens, less that of halves of a set.

    Small sets differ by chance; two halves of the general set say by how much.
    """
    halves = _distance(other[::2], other[1::2]) if len(other) > 1 else 0.0
    return max(0.0, _distance(bad, other) - halves)


def _distance(one: Sequence[Sample], two: Sequence[Sample]) -> float:
    shares = []
    for part in (one, two):
        counts: Counter[int] = Counter()
        for sample in part:
            counts.update(sample.input_ids[len(sample.input_ids) - sample.continuation :])
        total = sum(counts.values())
        shares.append({token: n / total for token, n in counts.items()})
    tokens = shares[0].keys() | shares[1].keys()
    return sum(abs(shares[0].get(t, 0) - shares[1].get(t, 0)) for t in tokens) / 2


def name_of(examples: Examples) -> str:
    """Return what a message calls examples: their file, or `undesired`."""
    return os.fspath(examples) if isinstance(examples, str | os.PathLike) else "undesired"


def read_rows(examples: Examples) -> list[dict[str, str]]:
    """Return rows of `prompt`, `undesired` and, where they are pairs, `neutral`.

    Raises:
        ExciseError: As of `read_behaviour`.
    """
    where = name_of(examples)
    if not isinstance(examples, str | os.PathLike):
        rows = [_given_row(f"`undesired`, number {at}", one) for at, one in enumerate(examples)]
    else:
        path = Path(examples)
        text = read_text(path)
        lines = lines_of(text)
        if path.suffix == ".tsv":
            rows = _tsv_rows(path, text)
        elif path.suffix == ".jsonl":
            parsed = ((f"{path}, line {n}", line) for n, line in lines)
            rows = [_row(at, parse_json(line, at)) for at, line in parsed]
        else:
            rows = [{"prompt": "", "undesired": line.strip()} for _, line in lines]
    if not rows:
        raise ExciseError(f"{where} holds no examples: write one per line")
    if len({len(row) for row in rows}) > 1:
        raise ExciseError(f"{where} mixes pairs with single examples: use one file for each")
    return rows


def _given_row(where: str, given: Any) -> dict[str, str]:
    if isinstance(given, str):
        given = {"continuation": given}
    elif isinstance(given, tuple | list) and len(given) == 2:
        given = dict(zip(("undesired", "neutral"), given, strict=True))
    return _row(where, given)


def _tsv_rows(path: Path, text: str) -> list[dict[str, str]]:
    rows = []
    for number, cells in tsv_rows(text, path):
        if number == 1 and cells and cells[0].strip().casefold() in _HEADERS:
            continue
        first, second = (cell.strip() for cell in (*cells, "", "")[:2])
        if bool(first) != bool(second):
            raise ExciseError(f"{path}, line {number}: needs two texts with a tab between them")
        if first:
            rows.append({"prompt": "", "undesired": first, "neutral": second})
    return rows


def _row(where: str, row: Any) -> dict[str, str]:
    texts: Mapping[str, Any] = row if isinstance(row, Mapping) else {}
    found = {"prompt": texts.get("prompt", "")}
    if "continuation" in texts:
        found["undesired"] = texts["continuation"]
    else:
        found |= {key: texts.get(key) for key in ("undesired", "neutral")}
    if not all(isinstance(v, str) and (v or k == "prompt") for k, v in found.items()):
        raise ExciseError(
            f'{where}: a row needs "continuation", or "undesired" and "neutral", as text, and may '
            'have a "prompt"'
        )
    return found


def read_general(general: Examples) -> str:
    """Return what a model should keep as one text: of JSONL or a list, a line for each example.

    Raises:
        ExciseError: As of `read_behaviour`.
    """
    if isinstance(general, str | os.PathLike) and Path(general).suffix != ".jsonl":
        return read_text(Path(general))
    rows = read_rows(general)
    lines = (f"{row['prompt']} {row.get('neutral', row['undesired'])}" for row in rows)
    if isinstance(general, str | os.PathLike):
        return "\n".join(lines)
    return "".join(f"{line.lstrip()}\n" for line in lines)  # as a file of these lines


def _general(
    tokenizer: Any, general: Examples, bad: Sequence[Sample], length: int, n: int, least: int
) -> tuple[Sample, ...]:
    if isinstance(general, str | os.PathLike) and Path(general).suffix == ".jsonl":
        rows = read_rows(general)[:n]
        found = (_encoded(tokenizer, row["prompt"], row["undesired"], length) for row in rows)
        return tuple(sample for sample in found if sample)
    text = read_general(general)
    typical = max(2, round(fmean(len(sample.input_ids) for sample in bad)))
    enough = len(text) // 64  # a short text is rather cut into many samples than into long ones
    return plain_samples(tokenizer, [text], n, max(typical, min(least, enough)))
