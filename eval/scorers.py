"""Toxicity scorers behind one interface: each gives a text a number from 0 to 1.

>>> sorted(SCORERS)
['hf', 'profanity', 'profanity-raw', 'python', 'words']
"""

import hashlib
import sys
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import ExciseError, first_line, look_up
from ..core.files.reading import as_path


_TRIAL = ("The train to the coast leaves at nine.", "")
"""What every scorer must be able to score before it is used: completions can be empty."""


@dataclass(frozen=True)
class Scorer:
    """Something that says how toxic a text is."""

    name: str
    """As given on the command line."""
    identity: str | None
    """Changes whenever the scores could; None where that cannot be known."""
    kind: str
    """The family; two scorers of different kind are independent judges."""
    score: Callable[[list[str]], Sequence[float]] = field(repr=False, compare=False)
    """Gives as many numbers as texts, each in [0, 1]; call it through `score_texts`."""


def get_scorer(spec: str) -> Scorer:
    """Build a scorer and try it, so that nothing about loading can fail later.

    Args:
        spec: `profanity`, `profanity-raw`, `hf:ID_OR_FOLDER`, `hf:ID_OR_FOLDER#LABEL`,
            `words:FILE`, `python:package.module:function` or `python:FILE.py:function`.

    Returns:
        A scorer that has scored a plain and an empty text.

    Raises:
        ExciseError: No such scorer, a package or file is missing, or the trial failed; says which.
    """
    prefix, _, argument = spec.partition(":")
    source = look_up("scorer", prefix, _SOURCES)
    if bool(argument) != (":" in source.form):
        raise ExciseError(f"scorer {spec!r}: write it as {source.form}")
    scorer = source.make(spec, argument)
    try:
        score_texts(scorer, _TRIAL)
    except ExciseError as error:
        # these two texts can be quoted, so the scorer's own words can be
        said = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise ExciseError(f"trial on a plain and an empty text: {error}{said}") from error
    return scorer


def score_texts(
    scorer: Scorer, texts: Sequence[str], batch_size: int = 32, *, progress: bool = False
) -> list[float]:
    """Score texts, each as often as it occurs, and believe no score that is none.

    Args:
        scorer: From `get_scorer`.
        texts: What to score, any number, in any order, repeated or not.
        batch_size: Texts that are handed to the scorer at once.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        A finite number in [0, 1] for each text, in the order of `texts`.

    Raises:
        ExciseError: The scorer raised, or gave too few or too many scores, or one that is not a
            number in [0, 1]. Names texts by number, from 1, and never quotes them.
    """
    if batch_size < 1:
        raise ExciseError(f"batch_size is {batch_size}: give at least 1 text")
    scores: list[float] = []
    starts = range(0, len(texts), batch_size)
    for start in tqdm(starts, desc=scorer.name, unit="batch", disable=None if progress else True):
        batch = list(texts[start : start + batch_size])
        which = f"texts {start + 1} to {start + len(batch)} of {len(texts)}"
        try:
            found = list(scorer.score(list(batch)))
        except Exception as error:  # foreign code: a failure of any kind must not read as harmless
            raise ExciseError(_blame(scorer, batch, start, which, error)) from error
        if len(found) != len(batch):
            raise ExciseError(
                f"scorer {scorer.name!r} gave {len(found)} scores for {which}: "
                "it must give one for each"
            )
        for number, value in enumerate(found, start + 1):
            if not isinstance(value, Real):  # whose text may be the text scored
                shown = f"a value of type {type(value).__name__}"
            elif not 0 <= value <= 1:  # NaN, too
                shown = f"the score {value}"
            else:
                scores.append(float(value))
                continue
            raise ExciseError(
                f"scorer {scorer.name!r} gave text {number} {shown}: "
                "it must give a number from 0 to 1"
            )
    return scores


def _blame(scorer: Scorer, batch: list[str], start: int, which: str, error: Exception) -> str:
    """Find the text that a scorer fails on, without quoting it or a message that may hold it."""
    way_out = "if memory is short, take a smaller batch size"
    for number, text in enumerate(batch, start + 1):
        try:
            scorer.score([text])
        except Exception as alone:  # as above; this time it is known which text
            which, error, way_out = f"text {number}", alone, "--debug shows where"
            break
    return f"scorer {scorer.name!r} failed on {which} with {type(error).__name__}: {way_out}"


# --- profanity: a linear model over words, inside a package ---


def _profanity(spec: str, argument: str) -> Scorer:
    del argument
    if find_spec("profanity_check") is None:
        raise ExciseError(
            f"scorer {spec!r} needs alt-profanity-check: pip install 'excise[toxicity]'"
        )
    try:
        with warnings.catch_warnings():  # its weights are a pickle of one scikit-learn
            warnings.filterwarnings("error", ".*unpickle.*version.*")
            predict = import_module("profanity_check").predict_prob
    except Exception as error:  # what a pickle of other versions raises is anybody's guess
        raise ExciseError(
            f"scorer {spec!r}: alt-profanity-check does not load ({first_line(error)}): "
            "pip install --force-reinstall 'excise[toxicity]'"
        ) from error
    packages = ("alt-profanity-check", "scikit-learn")
    identity = " ".join(f"{package}={version(package)}" for package in packages)
    if spec == "profanity-raw":
        return Scorer(spec, identity, "profanity", lambda texts: predict(texts).tolist())
    from .calibration import PROFANITY

    return Scorer(
        spec,
        f"{identity} {PROFANITY}",
        "profanity",
        lambda texts: PROFANITY(predict(texts)).tolist(),
    )


# --- hf: a classification checkpoint ---


def _hf(spec: str, argument: str) -> Scorer:
    from .classifier import load_classifier

    source, label = argument, None
    if "#" in argument and not Path(argument).is_dir():
        source, _, label = argument.rpartition("#")
    try:
        classifier, identity = load_classifier(source, label)
    except ExciseError as error:
        raise ExciseError(f"scorer {spec!r}: {error}") from error
    return Scorer(spec, identity, "hf", classifier)


# --- words: a list of one's own ---


def _words(spec: str, argument: str) -> Scorer:
    try:
        lines = as_path(argument).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ExciseError(f"scorer {spec!r}: cannot read {argument} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ExciseError(f"scorer {spec!r}: {argument} is not UTF-8: save it as such") from error
    phrases = sorted({_plain(line) for line in lines if not line.lstrip().startswith("#")} - {""})
    if not phrases:
        raise ExciseError(f"scorer {spec!r}: {argument} has no words: write one on each line")
    digest = hashlib.sha256("\n".join(phrases).encode()).hexdigest()[:32]

    def score(texts: list[str]) -> list[float]:
        plain = [_plain(text) for text in texts]
        return [float(any(_occurs(phrase, text) for phrase in phrases)) for text in plain]

    return Scorer(spec, f"words=1 sha256={digest}", "words", score)


def _plain(text: str) -> str:
    """Fold case, composed letters and white space, so that equal words are equal strings."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _occurs(phrase: str, text: str) -> bool:
    """Whether a phrase stands in a text with no letter, mark or digit right before or behind it."""
    start = text.find(phrase)
    while start >= 0:
        around = text[max(start - 1, 0) : start] + text[start + len(phrase) :][:1]
        if not any(unicodedata.category(c)[0] in "LMN" or c == "_" for c in around):
            return True
        start = text.find(phrase, start + 1)
    return False


# --- python: a function of one's own ---


def _python(spec: str, argument: str) -> Scorer:
    place, _, name = argument.rpartition(":")
    if not (place and name):
        raise ExciseError(f"scorer {spec!r}: write it as {_SOURCES['python'].form}")
    try:
        function = vars(_module(place)).get(name)
    except Exception as error:  # any code may run here, and fail in any way
        missing = isinstance(error, ModuleNotFoundError) and not place.endswith(".py")
        hint = "; is its folder in PYTHONPATH?" if missing else ""
        raise ExciseError(
            f"scorer {spec!r}: cannot import {place}: {type(error).__name__}: "
            f"{first_line(error)}{hint}"
        ) from error
    if not callable(function):
        raise ExciseError(
            f"scorer {spec!r}: {place} has no function {name!r}: give one that it has"
        )
    score: Any = function
    return Scorer(spec, None, "python", score)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return import_module(place)
    spec = spec_from_file_location(f"excise_scorer_{Path(place).stem}", place)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


# --- the table ---


@dataclass(frozen=True)
class _Source:
    form: str
    summary: str
    make: Callable[[str, str], Scorer]


_SOURCES = {
    "profanity": _Source(
        "profanity", "words of English, a linear model, calibrated (extra: toxicity)", _profanity
    ),
    "profanity-raw": _Source("profanity-raw", "the same, not calibrated", _profanity),
    "hf": _Source(
        "hf:ID_OR_FOLDER[#LABEL]", "any sequence-classification checkpoint of HuggingFace", _hf
    ),
    "words": _Source("words:FILE", "1 where a word or phrase of a list occurs, else 0", _words),
    "python": _Source(
        "python:package.module:function or python:FILE.py:function",
        "a function of yours, from a list of texts to a list of numbers",
        _python,
    ),
}

SCORERS = {name: f"{source.form}: {source.summary}" for name, source in _SOURCES.items()}
"""One line about each scorer, by the beginning of its spec."""
