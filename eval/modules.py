"""The metrics as modules of HuggingFace's `evaluate`, for live models and texts at hand.

    both = evaluate.combine([Perplexity(model=model, tokenizer=tokenizer), Repetition()])
    both.compute(data=["A text.", "Another text."])

Settings are given to a module when it is made, or to `compute` as usual; a module in a combination
takes from there what is its own. Everything stays in memory: no text is written to a cache.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..core.errors import ExciseError, unknown_name
from ..core.loading import Loaded
from ..core.statistics import Statistic
from . import perplexity, repetition, toxicity
from .outcome import Outcome, column
from .scorers import Scorer, get_scorer, score_texts


try:
    import evaluate
    from datasets import Features, Value
    from datasets import Sequence as Many
except ImportError as error:
    raise ExciseError(
        f"evaluate modules need the package {error.name}: pip install 'excise[eval]'"
    ) from error

TEXTS = Features({"data": Value("string")})
TOKENS = Features({"data": Many(Value("int64"))})
GROUPS = Features({"data": Many(Value("string"))})


class Module(evaluate.Measurement):
    """A measurement whose settings may be given when it is made."""

    features_: Features | list[Features] = TEXTS
    what = "data: list of texts"

    def __init__(self, *, cache_dir: str | None = None, **settings: Any):
        """Make the module.

        Args:
            cache_dir: A folder that `evaluate` makes and that stays empty.
            settings: As of `measured`.

        Raises:
            ExciseError: An unknown setting; lists near misses.
        """
        _check_names(settings, _settings(self.measured))
        self.settings = settings
        super().__init__(keep_in_memory=True, cache_dir=cache_dir)

    @abstractmethod
    def measured(self, *data: Any, **settings: Any) -> dict[str, Any]:
        """Measure the data; the other parameters are the module's settings."""

    def compute(self, **given: Any) -> dict[str, Any] | None:
        """Measure what was added, and `data`, with these settings.

        Raises:
            ExciseError: There is no data, or a setting is missing or unknown.
        """
        data = given.get("data")
        if len(self) == 0 and (data is None or len(data) == 0):
            raise ExciseError(f"{self.name} was given no data: add at least one text")
        return super().compute(**given)

    def add_batch(self, **batch: Any) -> None:
        """Add `data` to what the next `compute` measures.

        Raises:
            ExciseError: It is one text, whose letters would be taken for texts.
        """
        if isinstance(batch.get("data"), str):
            raise ExciseError(f"data of {self.name} is one text: give a list of texts")
        super().add_batch(**batch)

    def _info(self) -> evaluate.MeasurementInfo:
        describe = inspect.getdoc(type(self)) or ""
        return evaluate.MeasurementInfo(
            description=describe,
            citation="",
            inputs_description=f"\n{self.what}\n{inspect.getdoc(self.measured) or ''}",
            features=self.features_,
        )

    def _compute(self, *, data: Sequence[Any], **given: Any) -> dict[str, Any]:
        own = _settings(self.measured)
        _check_names(given, {name for module in MODULES for name in _settings(module.measured)})
        settings = {**self.settings, **{k: v for k, v in given.items() if k in own}}
        if missing := [k for k, p in own.items() if p.default is p.empty and k not in settings]:
            raise ExciseError(f"{self.name} needs {' and '.join(missing)}: give compute(...) one")
        return self.measured(list(data), **settings)


class Perplexity(Module):
    """Perplexity of texts: the exponential of all their losses over all their tokens."""

    def measured(
        self,
        data: Sequence[str],
        model: Any,
        tokenizer: Any,
        protocol: Literal["document", "window", "stride"] = "document",
        window: int | None = None,
        limit: int | None = None,
        batch_size: int | None = None,
    ) -> dict[str, Any]:
        """Measure a live model.

        Args:
            data: Texts.
            model: A causal language model, loaded.
            tokenizer: Its tokenizer.
            protocol: `document` takes each text alone, behind BOS; the others join them.
            window: Most tokens the model reads at once; by default 1,024, or all it can.
            limit: Use only the first windows or documents.
            batch_size: Windows per pass, which changes no number.

        Returns:
            Four perplexities with their intervals (`..._ci`), `perplexities` of each text or
            window, `n` of them, and the `protocol`.

        Raises:
            ExciseError: The model is a name, or this cannot be measured on it.
        """
        if isinstance(model, str):
            raise ExciseError(f"model is the name {model!r}: load it and give the model itself")
        most = getattr(model.config, "max_position_embeddings", perplexity.WINDOW)
        size: int = min(perplexity.WINDOW, most) if window is None else window
        metric = perplexity.Perplexity(data, protocol, size, limit, batch_size)
        loaded = Loaded(model, tokenizer, "")
        plan = metric.plan(loaded)
        rows = dict(metric.rows(loaded, plan, range(len(plan.units)), progress=False))
        (outcome,) = metric.outcomes(loaded, plan, [rows[i] for i in range(len(rows))])
        each = outcome.columns["loss"] / outcome.columns["tokens"]
        return {**_reported(outcome), "perplexities": np.exp(np.minimum(each, 700.0)).tolist()}


class Toxicity(Module):
    """Toxicity of texts, as what a model wrote, by one scorer."""

    def measured(
        self,
        data: Sequence[str],
        scorer: str | Scorer,
        threshold: float = toxicity.THRESHOLD,
        max_empty: float = 0.2,
    ) -> dict[str, Any]:
        """Score texts.

        Args:
            data: Texts.
            scorer: As in `profanity`, `hf:ID_OR_FOLDER`, `words:FILE`; or a scorer.
            threshold: Score from which a text counts as toxic.
            max_empty: Share of texts without a letter or digit from which all is refused.

        Returns:
            `mean_toxicity` and `toxic_fraction` with their intervals (`..._ci`), the `toxicity`
            of each text, `max_toxicity`, how many texts are `empty`, `n`, and the `protocol`.

        Raises:
            ExciseError: The scorer fails, or too many texts are empty.
        """
        statistics = (
            Statistic("mean_toxicity", "mean"),
            Statistic("toxic_fraction", "fraction", proportion=True),
        )
        scores, facts = _scored([[text] for text in data], scorer, threshold, max_empty)
        outcome = _outcome("toxicity", statistics, scores, facts, threshold)
        flat = scores[:, 0].tolist()
        return {**_reported(outcome), **facts, "toxicity": flat, "max_toxicity": max(flat)}


class ExpectedMaximumToxicity(Module):
    """Expected maximum toxicity over the completions of a prompt (Gehman et al. 2020)."""

    features_ = GROUPS
    what = "data: list of lists of texts, the completions of each prompt"

    def measured(
        self,
        data: Sequence[Sequence[str]],
        scorer: str | Scorer,
        threshold: float = toxicity.THRESHOLD,
        max_empty: float = 0.2,
    ) -> dict[str, Any]:
        """Score completions.

        Args:
            data: Completions of each prompt, equally many.
            scorer: As in `profanity`, `hf:ID_OR_FOLDER`, `words:FILE`; or a scorer.
            threshold: Score from which a completion counts as toxic.
            max_empty: Share of completions without a letter or digit from which all is refused.

        Returns:
            `expected_maximum_toxicity`, `toxicity_probability`, `mean_toxicity` and
            `toxic_fraction` with their intervals (`..._ci`) over prompts, how many completions are
            `empty`, `n` prompts, and the `protocol`.

        Raises:
            ExciseError: Prompts have different numbers of completions, the scorer fails, or too
                many completions are empty.
        """
        counts = sorted({len(row) for row in data})
        if len(counts) > 1 or counts == [0]:
            raise ExciseError(
                f"prompts have {' or '.join(map(str, counts))} completions: the maximum of more is "
                "larger, so give equally many, at least 1"
            )
        scores, facts = _scored(data, scorer, threshold, max_empty)
        outcome = _outcome("toxicity", toxicity.STATISTICS, scores, facts, threshold)
        return {**_reported(outcome), **facts}


class Repetition(Module):
    """How much texts repeat themselves."""

    features_ = [TEXTS, TOKENS]  # noqa: RUF012
    what = "data: list of texts, or list of lists of token ids"

    def measured(
        self, data: Sequence[str] | Sequence[Sequence[int]], tokenizer: Any = None
    ) -> dict[str, Any]:
        """Measure texts.

        Args:
            data: Texts, or token ids of each.
            tokenizer: Cuts texts into tokens; without it, they are cut at white space.

        Returns:
            `unique_token_ratio`, `distinct_2`, `distinct_3`, `longest_repeat`, the share that is
            `repetitive` and the mean `length`, with their intervals (`..._ci`), `n`, and the
            `protocol`.
        """
        pieces = "token ids" if not isinstance(data[0], str) else "tokens" if tokenizer else "words"
        cut: dict[str, Callable[[Any], Sequence[Any]]] = {
            "token ids": list,
            "tokens": lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            "words": str.split,
        }
        rows = [repetition.repetition(cut[pieces](item)) for item in data]
        columns = {s.of: column(rows, s.of) for s in repetition.STATISTICS}
        units = tuple(map(str, range(len(data))))
        protocol = f"{pieces} of each text, repetitive below {repetition.REPETITIVE:g}"
        return _reported(Outcome("repetition", protocol, repetition.STATISTICS, units, columns))


MODULES: tuple[type[Module], ...] = (Perplexity, Toxicity, ExpectedMaximumToxicity, Repetition)


def _scored(
    texts: Sequence[Sequence[str]], scorer: str | Scorer, threshold: float, max_empty: float
) -> tuple[Any, dict[str, Any]]:
    """Return scores, (prompts, completions), and what to know about them."""
    judge = get_scorer(scorer) if isinstance(scorer, str) else scorer
    if not 0 < threshold <= 1:
        raise ExciseError(f"threshold is {threshold:g}: give more than 0, at most 1")
    empty = toxicity.Toxicity((), max_empty=max_empty).check_empty(texts)
    flat = [text for row in texts for text in row]
    scores = np.array(score_texts(judge, flat)).reshape(len(texts), -1)
    return scores, {"scorer": judge.name, "empty": empty}


def _outcome(
    name: str,
    statistics: tuple[Statistic, ...],
    scores: Any,
    facts: Mapping[str, Any],
    threshold: float,
) -> Outcome:
    protocol = f"{scores.shape[1]} per prompt; scorer {facts['scorer']}, threshold {threshold:g}"
    columns = toxicity.toxicity_columns(scores, threshold)
    return Outcome(name, protocol, statistics, tuple(map(str, range(len(scores)))), columns, facts)


def _reported(outcome: Outcome) -> dict[str, Any]:
    """Return each statistic and its interval, and what was measured."""
    found: dict[str, Any] = {}
    for name, measure in outcome.measures.items():
        found[name] = measure.value
        found[f"{name}_ci"] = measure.ci
    return {**found, "n": outcome.headline.n, "protocol": outcome.protocol}


def _settings(measured: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(measured).parameters
    return {name: p for name, p in parameters.items() if name not in ("self", "data")}


def _check_names(given: Mapping[str, Any], known: Mapping[str, Any] | set[str]) -> None:
    for name in given:
        if name not in known:
            raise unknown_name("setting", name, known)
