"""What a correction is made with: examples in their parts, text in its parts, and what was seen."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.data import Sample
from ...core.errors import ExciseError
from ...core.loading import Loaded
from ...core.texts import line_hashes, near, text_hash
from ...eval.scorers import Scorer
from .behaviour import PLAIN_LENGTH, BehaviourSet, Examples, name_of, plain_samples, read_behaviour
from .continuations import bad_continuations, paired_continuations
from .likelihood import decoded_sample, prompt_of
from .recipes import Parts, likelihood_target, prompt_parts
from .splits import SHARES, Part, split
from .target import Target, hashes_of, split_documents, unseen


COST_SAMPLES = 96
"""Samples of general text that costs are weighed with."""
GENERAL = 0.15
"""Share of a text that serves as general text where none was given."""


@dataclass(frozen=True)
class GenerationSettings:
    """What a model is let write to attribute with."""

    scorer: Scorer | None
    """Picks the bad continuations; None picks by repetition."""
    new_tokens: int
    completions: int = 0
    """Samples per prompt, from which pairs are made; 0 takes greedy continuations, the bad ones
    against the others."""
    seed: int = 0

    def behaviour(self, loaded: Loaded, prompts: Sequence[str], name: str) -> BehaviourSet:
        """Let the model write."""
        shared: dict[str, Any] = {"new_tokens": self.new_tokens, "name": name, "batch_size": 64}
        if not self.completions:
            return bad_continuations(loaded, prompts, self.scorer, **shared)
        return paired_continuations(
            loaded, prompts, self.scorer, self.completions, seed=self.seed, **shared
        )


@dataclass(frozen=True)
class Texts:
    """Plain text by what it is for; no line is in two of them."""

    general: list[str]
    selection: list[str]
    test: list[str]


@dataclass(frozen=True)
class CorrectionData:
    """All that finding, choosing and proving need."""

    target: Target
    parts: Parts
    behaviour: Callable[[], BehaviourSet]
    """Makes the samples of the attribution; may let the model write."""
    texts: Texts
    seen: frozenset[str]
    """Hashes of all that finds and chooses."""
    given: int
    """Examples of a file that the attribution takes beside those of the parts."""
    inputs: tuple[str, ...]
    """All that the attribution is made with, in its order: texts, and hashes of samples."""


def divided(documents: Sequence[str], general: Sequence[str] | None) -> Texts:
    """Divide text, and take its beginning for general text where there is no other.

    Args:
        documents: For perplexity.
        general: What the model should go on to do, if it was given.

    Raises:
        ExciseError: It is too short.
    """
    rest, first = documents, general
    if first is None:
        first, rest = split_documents(documents, share=GENERAL)
    seen = [line for text in first for line in line_hashes(text)]
    if general is not None:
        rest = [unseen(text, seen) for text in rest]
    selection, test = split_documents(rest, seen)
    return Texts(list(first), selection, test)


def from_prompts(
    loaded: Loaded, target: Target, parts: Parts, written: GenerationSettings, texts: Texts
) -> CorrectionData:
    """Take the model's own bad continuations of the prompts for attribution.

    Args:
        loaded: The model.
        target: What is to go.
        parts: Of the prompts.
        written: What the model writes.
        texts: Text in its parts.

    Raises:
        ExciseError: There is no prompt for attribution.
    """
    _enough(parts)
    plain_samples(
        loaded.tokenizer, texts.general, 1, PLAIN_LENGTH
    )  # said before anything is written

    def make() -> BehaviourSet:
        found = written.behaviour(loaded, parts.attribution, target.name)
        return with_kept(loaded.tokenizer, found, texts.general)

    prompts = frozenset(map(text_hash, (*parts.attribution, *parts.selection)))
    return _material(target, parts, make, texts, prompts, 0, parts.attribution)


def from_examples(
    loaded: Loaded,
    undesired: Examples,
    general: Examples | None,
    texts: Texts,
    make_target: Callable[[str], Target] | None,
    prompts: Sequence[str] | None,
    limit: int,
    written: GenerationSettings | None = None,
    name: str | None = None,
) -> CorrectionData:
    """Take undesired examples from a file; some of them are held out where there are no prompts.

    Args:
        loaded: The model.
        undesired: See `read_behaviour`.
        general: Likewise.
        texts: Text in its parts.
        make_target: Makes the target of prompts, by the behaviour's name; None measures how likely
            held-out examples are.
        prompts: To select and test on; with `written` to attribute with as well.
        limit: Use only the first so many examples.
        written: Pairs of the model's own continuations that join those of the file.
        name: What to call the behaviour.

    Raises:
        ExciseError: A file that cannot be read, no pairs for pairs to join, prompts without a
            judge, or too few examples.
    """
    tokenizer = loaded.tokenizer
    whole = read_behaviour(tokenizer, undesired, general, name, limit=limit)
    if prompts is not None and make_target is None:
        raise ExciseError("`prompts` are completed, and what says how bad that is: give `judges`")
    target = (make_target or likelihood_target)(whole.name)
    apart = False
    if prompts is None:
        held = _held_out(tokenizer, whole, make_target is not None)
        found, parts, apart = held.behaviour, held.parts, held.whole
    else:
        used = {text_hash(prompt_of(tokenizer, s)) for s in whole.undesired}
        again = near([text_hash(prompt) for prompt in prompts], used)
        fresh = [prompt for prompt in prompts if text_hash(prompt) not in again]
        found, parts = whole, prompt_parts(fresh, attribute=written is not None)
    if written and not whole.paired:
        raise ExciseError(f"`completions` adds pairs to pairs, and {name_of(undesired)} holds none")
    if written:
        _enough(parts)
    found = with_kept(tokenizer, found, texts.general)
    seen = parts.selection if written is None else (*parts.attribution, *parts.selection)
    chosen = _known_by(tokenizer, (*found.undesired, *found.general, *seen), apart)
    again = near(_known_by(tokenizer, parts.test, apart), chosen)
    test = tuple(one for one in parts.test if not again & _known_by(tokenizer, [one], apart))
    if len(test) < 2:
        raise ExciseError(
            f"of {len(parts.test)} examples for the test {len(parts.test) - len(test)} are equal "
            "or nearly equal to examples or general text that find or choose the edit, which "
            f"leaves {len(test)}: take them out there, or give others"
        )

    def make() -> BehaviourSet:
        if written is None:
            return found
        own = written.behaviour(loaded, parts.attribution, found.name)
        undesired, general = found.undesired + own.undesired, found.general + own.general
        return replace(found, undesired=undesired, general=general)

    inputs = (found.fingerprint, *(parts.attribution if written else ()))
    given = 0 if prompts is None else len(found.undesired)
    return _material(target, replace(parts, test=test), make, texts, chosen, given, inputs)


def with_kept(
    tokenizer: Any, behaviour: BehaviourSet, general: Sequence[str], n: int = COST_SAMPLES
) -> BehaviourSet:
    """Add plain text that costs are weighed with, cut as long as the samples, where there is none.

    Raises:
        ExciseError: The text is shorter than one sample.
    """
    if behaviour.kept:
        return behaviour
    lengths = [len(sample.input_ids) for sample in behaviour.undesired]
    length = max(16, round(sum(lengths) / len(lengths)))
    return replace(behaviour, kept=plain_samples(tokenizer, general, n, length))


def _enough(parts: Parts) -> None:
    if len(parts.attribution) < 2:
        raise ExciseError(
            f"{len(parts.attribution)} of the prompts fall to the attribution, which needs 2: give "
            "more of them, about 30"
        )


@dataclass(frozen=True)
class _Divided:
    """Examples of a file in their parts."""

    behaviour: BehaviourSet
    """Those of the attribution."""
    parts: Parts
    whole: bool
    """Whether whole texts were divided, since too many of them begin alike."""


def _held_out(tokenizer: Any, behaviour: BehaviourSet, prompted: bool) -> _Divided:
    """Split examples by the text before their continuation, so that no prompt is in two parts.

    Examples that begin alike are divided as whole texts where a part would get too little, unless
    it is their beginnings that the model is to complete.

    Raises:
        ExciseError: Too few of them for three parts.
    """
    different: dict[str, int] = {}
    for at, sample in enumerate(behaviour.undesired):
        different.setdefault(text_hash(decoded_sample(tokenizer, sample)), at)
    rows, samples = list(different.values()), behaviour.undesired
    by_part = split(rows, key=lambda at: prompt_of(tokenizer, samples[at]))
    beginnings = len({text_hash(prompt_of(tokenizer, samples[at])) for at in rows})
    short = any(len(by_part[part]) < SHARES[part] * len(rows) / 2 for part in by_part)
    whole = short and not prompted and beginnings < len(rows)
    if whole:
        by_part = split(rows, key=lambda at: decoded_sample(tokenizer, samples[at]))
    taken = by_part["attribution"]

    def part(name: Part) -> tuple[Any, ...]:
        held = [samples[at] for at in by_part[name]]
        if not prompted:
            return tuple(held)
        texts = {text_hash(text): text for s in held if (text := prompt_of(tokenizer, s))}
        return tuple(texts.values())

    selection, test = part("selection"), part("test")
    if not taken or min(len(selection), len(test)) < 2:
        raise ExciseError(
            f"{len(samples)} examples ({len(rows)} different, {beginnings} different beginnings) "
            f"leave {len(taken)} to attribute, {len(selection)} to select and {len(test)} to test "
            f"on: give at least 30 that {'begin differently' if prompted else 'differ'}, or "
            "`prompts` with `judges`"
        )
    found = replace(
        behaviour,
        undesired=tuple(samples[at] for at in taken),
        general=tuple(behaviour.general[at] for at in taken)
        if behaviour.paired
        else behaviour.general,
    )
    return _Divided(found, Parts(found.undesired, selection, test), whole)


def _known_by(
    tokenizer: Any, examples: Iterable[Sample | str], whole: bool = False
) -> frozenset[str]:
    """Return the hashes of examples, and unless `whole` of what stands before a continuation."""
    hashes: set[str] = set()
    for example in examples:
        if isinstance(example, str):
            hashes.add(text_hash(example))
            continue
        hashes.add(text_hash(decoded_sample(tokenizer, example)))
        if not whole:
            hashes.add(text_hash(prompt_of(tokenizer, example)))
    return frozenset(hashes)


def _material(
    target: Target,
    parts: Parts,
    behaviour: Callable[[], BehaviourSet],
    texts: Texts,
    hashes: frozenset[str],
    given: int,
    inputs: Sequence[str],
) -> CorrectionData:
    seen = hashes | hashes_of([*texts.general, *texts.selection])
    return CorrectionData(target, parts, behaviour, texts, seen, given, (*inputs, *texts.general))
