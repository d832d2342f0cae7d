"""A gate's policy: a small YAML file of rules by the name of what they bound.

```yaml
confidence: 95 %          # of everything below; this is the default
min_samples: 30           # units behind every bounded number; this is the default
rare: 3 %                 # damage in this share of units must not stay unseen; the default
held_out: required        # it must be known which texts chose the edit
perplexity:
  protocol: window=1024   # words that the protocol must hold
  max_increase: 1 %       # a percentage is relative, a plain number is in the statistic's unit
  equivalence: 95 %       # and not lower by more than that either (TOST)
toxicity:
  scorer: profanity       # which judge
  statistic: toxicity_probability   # the headline if left out
  min_decrease: 20 %
repetition: {max_decrease: 5 %}
accuracy: {max_decrease: 0.02}      # every task; or by name: {ioi: {min: 0.9}}
zero_shot: {arc_easy: {max_decrease: 0.01}}
```
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError, shown, unknown_name
from ..core.files.numbers import amount
from ..core.files.plain_yaml import parse_yaml
from ..core.files.reading import read_text


BOUNDS = {
    "max": "the value is at most this",
    "min": "the value is at least this",
    "max_increase": "it rises by at most this",
    "max_decrease": "it falls by at most this",
    "min_increase": "it rises by at least this",
    "min_decrease": "it falls by at least this",
}
"""Rules with a bound, each with what has to be shown."""

SETTINGS = ("statistic", "scorer", "protocol", "min_samples", "rare", "equivalence")
GROUPS = {"tasks": "tasks", "accuracy": "tasks", "zero_shot": "zero_shot"}
"""Sections that may hold a section per task, and the outcomes they are about."""

REQUIRED = "required"
"""What `held_out` may be: then it must be known which texts chose the edit."""

SINGLE = ("perplexity", "toxicity", "repetition")

RARE = 0.03
"""Damage in this share of units must not stay unseen, unless a policy says otherwise."""


@dataclass(frozen=True)
class Rule:
    """One thing that must be shown."""

    section: str
    """Outcome, as in `perplexity`, `tasks.ioi`; `tasks.*` is every task."""
    kind: str
    """One of `BOUNDS`, or `equivalence`."""
    bound: float
    relative: bool
    """Whether the bound is a share of the first model's value."""
    confidence: float
    min_samples: int
    statistic: str | None = None
    scorer: str | None = None
    protocol: str | None = None
    """Words that the outcome's protocol must hold."""
    rare: float = RARE
    """Damage in this share of units must not stay unseen; see `rare.hidden`."""

    @property
    def name(self) -> str:
        """As in `perplexity.max_increase`."""
        return f"{self.section}.{self.kind}"

    def __str__(self) -> str:
        amount = f"{100 * self.bound:g} %" if self.relative else f"{self.bound:g}"
        return f"{self.name} {amount} at {100 * self.confidence:g} %"


def read_policy(path: str | Path) -> list[Rule]:
    """Read a policy.

    Raises:
        ExciseError: No file, no YAML, an unknown section, rule or value, or no rule at all: a
            gate that checks nothing would let everything pass.
    """
    text = read_text(path)
    try:
        return parse_policy(parse_yaml(text))
    except ExciseError as error:
        raise ExciseError(f"policy {path}: {error}") from error


def parse_policy(content: Any) -> list[Rule]:
    """Make rules of a policy's content; see this module.

    Raises:
        ExciseError: As `read_policy`.
    """
    sections = dict(_mapping("the policy", content))
    confidence = _confidence("confidence", sections.pop("confidence", 0.95))
    samples = _count("min_samples", sections.pop("min_samples", 30))
    rare = _share("rare", sections.pop("rare", RARE))
    held_out = sections.pop("held_out", None)
    if held_out not in (None, REQUIRED):
        raise ExciseError(f"held_out is {shown(held_out)}: write {REQUIRED}, or leave it out")
    rules = []
    for name, body in sections.items():
        if name not in (*SINGLE, *GROUPS):
            raise unknown_name(
                "section", str(name),
                ("confidence", "min_samples", "rare", "held_out", *SINGLE, *GROUPS),
            )  # fmt: skip
        for section, settings in _expanded(name, _mapping(name, body)):
            rules.extend(_rules(section, settings, confidence, samples, rare))
    if not rules:
        raise ExciseError("there is no rule in it, so it would let everything pass: add one")
    if held_out:
        rules.append(Rule("held_out", REQUIRED, 0.0, False, confidence, samples))
    return rules


def _expanded(name: str, body: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the section, or those of its tasks."""
    if name not in GROUPS:
        yield name, body
    elif body and all(isinstance(value, dict) for value in body.values()):
        for task, settings in body.items():
            yield f"{GROUPS[name]}.{task}", settings
    else:
        yield f"{GROUPS[name]}.*", body


def _rules(
    section: str, settings: Mapping[str, Any], confidence: float, samples: int, rare: float
) -> Iterator[Rule]:
    for key in settings:
        if key not in (*BOUNDS, *SETTINGS):
            raise unknown_name(f"rule in {section}", str(key), (*BOUNDS, *SETTINGS))
    shared: dict[str, Any] = {
        "min_samples": _count(f"{section}.min_samples", settings.get("min_samples", samples)),
        "rare": _share(f"{section}.rare", settings.get("rare", rare)),
        "statistic": _name(section, "statistic", settings),
        "scorer": _name(section, "scorer", settings),
        "protocol": _name(section, "protocol", settings),
    }
    bounds = {key: _amount(f"{section}.{key}", settings[key]) for key in BOUNDS if key in settings}
    for key, (bound, relative) in bounds.items():
        if relative and key in ("max", "min"):
            bound, relative = bound, False  # a share, as of an accuracy
        yield Rule(section, key, bound, relative, confidence, **shared)
    if "equivalence" in settings:
        margin, relative = bounds.get("max_increase", (0.0, False))
        if not relative or margin <= 0:
            raise ExciseError(
                f"{section}.equivalence needs its margin: max_increase above 0 %, as in 1 %"
            )
        level = _confidence(f"{section}.equivalence", settings["equivalence"])
        yield Rule(section, "equivalence", margin, True, level, **shared)
    if not bounds:
        raise ExciseError(f"{section} bounds nothing: add one of {', '.join(BOUNDS)}")


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ExciseError(
            f"{name} is {shown(value)}: write rules below it, as in max_increase: 1 %"
        )
    return value


def _name(section: str, key: str, settings: Mapping[str, Any]) -> str | None:
    if key in settings and not isinstance(settings[key], str):
        raise ExciseError(
            f"{section}.{key} is {shown(settings[key])}: give a name, or leave it out"
        )
    return settings.get(key)


def _amount(name: str, value: Any) -> tuple[float, bool]:
    """Read `1 %` as (0.01, relative) and `0.01` as (0.01, absolute)."""
    known = isinstance(value, str | int | float) and not isinstance(value, bool)
    found = amount(str(value)) if known else None
    if found is None:
        raise ExciseError(f"{name} is {shown(value)}: give a number, or a percentage as in 1 %")
    if found[0] < 0:
        raise ExciseError(f"{name} is {shown(value)}: give 0 or more, and a finite number")
    return found


def _confidence(name: str, value: Any) -> float:
    number, _ = _amount(name, value)
    if not 0.5 < number < 1:
        raise ExciseError(f"{name} is {shown(value)}: give a confidence as in 95 %")
    return number


def _share(name: str, value: Any) -> float:
    number, _ = _amount(name, value)
    if not 0 < number <= 1:
        raise ExciseError(f"{name} is {shown(value)}: give a share above 0, up to 100 %, as in 3 %")
    return number


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 2:
        raise ExciseError(f"{name} is {shown(value)}: give a whole number from 2")
    return value
