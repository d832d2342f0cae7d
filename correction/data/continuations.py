"""What a model says itself: its own bad continuations against its own good ones."""

from collections.abc import Sequence

from ...core.data import Sample
from ...core.errors import ExciseError
from ...core.generation import Decoding, complete
from ...core.loading import Loaded
from ...eval.repetition import REPETITIVE, repetition
from ...eval.scorers import Scorer, score_texts
from .behaviour import BehaviourSet


PER_PROMPT = 3
"""Pairs of a prompt at most."""
APART = 0.4
"""By how much the scores of a pair differ, at least."""


def own_continuations(
    loaded: Loaded,
    prompts: Sequence[str],
    scorer: Scorer | None,
    decoding: Decoding,
    batch_size: int = 16,
) -> list[list[tuple[Sample, float]]]:
    """Let a model continue prompts, and score what it says.

    Args:
        loaded: The model.
        prompts: Texts.
        scorer: From `get_scorer`; None takes the share of tokens that are repeats.
        decoding: How each prompt is continued.
        batch_size: Continuations per pass.

    Returns:
        For each prompt, its continuations that are not empty: the whole as a sample, and its score
        from 0 to 1.
    """
    tokenizer = loaded.tokenizer
    ids = [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    found = dict(complete(loaded.model, ids, decoding, batch_size))
    tails = [(i, tuple(tail)) for i in sorted(found) for tail in found[i] if tail]
    if scorer is None:
        scores = [1 - repetition(tail)["unique_token_ratio"] for _, tail in tails]
    else:
        texts = [tokenizer.decode(tail, skip_special_tokens=True) for _, tail in tails]
        scores = score_texts(scorer, texts)
    rows: list[list[tuple[Sample, float]]] = [[] for _ in prompts]
    for (i, tail), score in zip(tails, scores, strict=True):
        rows[i].append((Sample((*ids[i], *tail), continuation=len(tail)), score))
    return rows


def bad_continuations(
    loaded: Loaded,
    prompts: Sequence[str],
    scorer: Scorer | None,
    threshold: float | None = None,
    *,
    new_tokens: int | None = None,
    batch_size: int = 16,
    name: str = "own continuations",
) -> BehaviourSet:
    """Make a behaviour of a model's greedy continuations: the bad ones against the others.

    Args:
        loaded: The model.
        prompts: Those that make some models say what they should not.
        scorer: From `get_scorer`; None picks by repetition.
        threshold: A continuation is bad above it. By default 0.5: for repetition, that is fewer
            unique tokens than half.
        new_tokens: Length of the continuations; 20, or 50 for repetition, if None.
        batch_size: Prompts per pass.
        name: What to call the behaviour.

    Raises:
        ExciseError: None is bad, or all are.
    """
    threshold = (0.5 if scorer else 1 - REPETITIVE) if threshold is None else threshold
    greedy = Decoding(0, new_tokens or (20 if scorer else 50))
    rows = own_continuations(loaded, prompts, scorer, greedy, batch_size)
    scored = [one for row in rows for one in row]
    bad = tuple(sample for sample, score in scored if score > threshold)
    rest = tuple(sample for sample, score in scored if score <= threshold)
    if not bad or not rest:
        raise ExciseError(
            f"{len(bad)} of {len(scored)} continuations score above {threshold:g}: "
            "give other prompts, or another threshold"
        )
    return BehaviourSet(name, bad, rest, False)


def paired_continuations(
    loaded: Loaded,
    prompts: Sequence[str],
    scorer: Scorer | None,
    completions: int,
    *,
    new_tokens: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    name: str = "own continuations",
) -> BehaviourSet:
    """Make pairs of what a model says to the same prompt: its worst against its best.

    A pair shares its prompt and its author, so its topic does not tell its sides apart, nor does an
    early end: continuations of less than half the tokens are left out. Of each prompt the worst
    stands against the best, the second worst against the second best, ...

    Args:
        loaded: The model.
        prompts: As of `bad_continuations`.
        scorer: Likewise.
        completions: Samples per prompt, beside the greedy one.
        new_tokens: Likewise.
        seed: Of the samples.
        batch_size: Continuations per pass.
        name: What to call the behaviour.

    Raises:
        ExciseError: No prompt has a good and a bad continuation.
    """
    tokens = new_tokens or (20 if scorer else 50)
    rows: list[list[tuple[Sample, float]]] = [[] for _ in prompts]
    for decoding in (Decoding(0, tokens), Decoding(completions, tokens, top_p=0.95, seed=seed)):
        found = own_continuations(loaded, prompts, scorer, decoding, batch_size)
        rows = [before + more for before, more in zip(rows, found, strict=True)]
    pairs: list[tuple[Sample, Sample]] = []
    for row in rows:
        long = {sample: score for sample, score in row if 2 * sample.continuation >= tokens}
        ranked = sorted(long.items(), key=lambda one: -one[1])
        for n in range(min(PER_PROMPT, len(ranked) // 2)):
            (bad, worst), (good, best) = ranked[n], ranked[-1 - n]
            if worst - best >= APART:
                pairs.append((bad, good))
    if not pairs:
        raise ExciseError(
            f"none of {len(prompts)} prompts has continuations whose scores are {APART:g} apart: "
            "give other prompts, or more completions"
        )
    undesired, general = zip(*pairs, strict=True)
    return BehaviourSet(name, undesired, general, True)
