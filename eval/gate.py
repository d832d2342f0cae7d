"""Pass or fail, by name: what a policy asks, decided on bounds and not on point estimates.

A rule passes where the data show that it is kept, at its confidence. It fails where they show that
it is broken, and is inconclusive where they show neither: then more samples are needed, and the
gate is not met either. So measuring little does not help. Nor does it help that few units
may hold none of those that an edit hits hard: nothing is shown before so many were measured that
damage to a certain share of them (`rare` in the policy) would have been seen.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from scipy.stats import binomtest

from ..core.bootstrap import Bootstrap
from ..core.errors import ExciseError
from ..core.statistics import Statistic, estimate, short
from .compare import Comparison, comparable
from .outcome import Outcome
from .policy import REQUIRED, Rule
from .rare import hidden, told
from .run import Evaluation


Status = Literal["pass", "fail", "inconclusive", "error", "unknown"]


@dataclass(frozen=True)
class Check:
    """One decision."""

    name: str
    status: Status
    detail: str

    @property
    def passed(self) -> bool:
        """Only what is shown to be kept passes."""
        return self.status == "pass"

    def __str__(self) -> str:
        return f"{self.status.upper():12}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class Gate:
    """All decisions on one model."""

    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def check_gate(
    rules: Sequence[Rule], candidate: Evaluation, baseline: Evaluation | None = None
) -> Gate:
    """Decide every rule.

    Args:
        rules: From `read_policy`.
        candidate: The model to decide on.
        baseline: What it is compared with; rules of change are errors without one.

    Returns:
        Besides the rules: that the candidate differs from the baseline, and that no text that
        chose its edit was used to measure it. Where it is not known which did, nothing is said of
        that, unless it is required: then it is not met.
    """
    checks = [_edited(candidate, baseline)] if baseline else []
    checks += _held_out(candidate, any(rule.kind == REQUIRED for rule in rules))
    rules = [rule for rule in rules if rule.kind != REQUIRED]
    if not rules:
        checks.append(Check("policy", "error", "there is no rule, so nothing was decided"))
    wanted = [(rule, name) for rule in rules for name in _outcomes(rule, candidate, baseline)]
    for rule, name in wanted:
        try:
            checks.append(_decide(rule, name, candidate, baseline, len(wanted)))
        except ExciseError as error:
            checks.append(Check(f"{name}.{rule.kind}", "error", str(error)))
    return Gate(candidate.model, tuple(checks))


def _edited(candidate: Evaluation, baseline: Evaluation) -> Check:
    same = candidate.model_hash == baseline.model_hash
    if same:
        detail = f"{candidate.model} has the very weights of {baseline.model}: nothing was edited"
        return Check("edited", "error", detail)
    return Check("edited", "pass", "its weights differ from the baseline's")


def _held_out(candidate: Evaluation, required: bool) -> list[Check]:
    if reused := candidate.reused():
        counts = ", ".join(
            f"{count} of {len(candidate[name].known_by)} of {name}"
            for name, count in reused.items()
        )
        detail = (
            f"texts that chose the edit, or nearly the same, were measured again ({counts}): use "
            "others"
        )
        return [Check("held_out", "error", detail)]
    if why := candidate.seen.unknown:
        return [Check("held_out", "unknown", why)] * required
    known = len(candidate.seen.hashes)
    detail = f"none of the {known} prompts and lines that chose the edit was measured"
    return [Check("held_out", "pass", detail if known else "no text chose the edit")]


def _outcomes(rule: Rule, candidate: Evaluation, baseline: Evaluation | None) -> list[str]:
    """Return the outcomes a rule is about; its own name where there is none, to be an error.

    A task that only the baseline was measured for is one of them, to be an error as well.
    """
    if rule.scorer is not None:
        judged = (n for n, o in candidate.outcomes.items() if o.facts.get("scorer") == rule.scorer)
        named = (n for n in judged if n.partition("@")[0] == rule.section)
        return [next(named, f"{rule.section}@{rule.scorer}")]
    if rule.section.endswith(".*"):
        known = {**candidate.outcomes, **(baseline.outcomes if baseline else {})}
        return [n for n in known if n.startswith(rule.section[:-1])] or [rule.section]
    return [rule.section]


def _decide(
    rule: Rule, name: str, candidate: Evaluation, baseline: Evaluation | None, decisions: int
) -> Check:
    outcome = candidate[name]
    statistic = _statistic(rule, outcome)
    if rule.protocol and rule.protocol not in outcome.protocol:
        raise ExciseError(f"the protocol is {outcome.protocol!r}, not {rule.protocol!r}")
    n = len(outcome.units)
    if n < rule.min_samples:
        raise ExciseError(f"{n} samples are too few: the rule asks for {rule.min_samples}")
    if rule.kind in ("max", "min"):
        found = _value(statistic, outcome, rule)
    else:
        found = _change(statistic, name, outcome, baseline, rule)
    return found.decide(rule, f"{name}.{rule.kind}", decisions)


def _statistic(rule: Rule, outcome: Outcome) -> Statistic:
    if rule.statistic is None:
        return outcome.statistics[0]
    named = {statistic.name: statistic for statistic in outcome.statistics}
    if rule.statistic not in named:
        raise ExciseError(f"no statistic {rule.statistic!r}: there are {', '.join(named)}")
    return named[rule.statistic]


@dataclass(frozen=True)
class _Found:
    """A number with its p values on both sides of a bound."""

    words: str
    kept_p: float
    """P value against 'the rule is broken': small where the data show that it is kept."""
    broken_p: float
    unseen: str = ""
    """What too few units may hide."""

    def decide(self, rule: Rule, name: str, decisions: int) -> Check:
        alpha = 1 - rule.confidence
        asked = str(rule).removeprefix(f"{rule.name} ")
        if self.kept_p <= alpha:
            return Check(name, "pass", f"{self.words}; {asked}, p = {short(self.kept_p)}")
        # an alarm needs the two-sided interval to exclude the bound; several decisions are made,
        # and one false alarm among all of them is what must be rare
        if self.broken_p <= alpha / 2 / decisions:
            return Check(
                name, "fail", f"{self.words}; {asked}, broken (p = {short(self.broken_p)})"
            )
        todo = self.unseen or "measure more samples"
        return Check(
            name, "inconclusive",
            f"{self.words}; {asked} is not shown (p = {short(self.kept_p)}): {todo}",
        )  # fmt: skip


def _value(statistic: Statistic, outcome: Outcome, rule: Rule) -> _Found:
    columns = dict(outcome.columns)
    found = estimate(statistic, columns)
    words = f"{statistic.name} {outcome.measures[statistic.name]}"
    if statistic.proportion:
        below, above = _proportion_p(round(columns[statistic.of].sum()), found.n, rule.bound)
        kept, broken = (above, below) if rule.kind == "max" else (below, above)
        return _Found(words, kept, broken)
    missed, (lowest, highest) = hidden(statistic, columns, rule), statistic.within
    kept, broken = _p(found, rule.kind == "max", rule.bound, missed)
    if rule.bound >= highest if rule.kind == "max" else rule.bound <= lowest:
        kept, broken = 0.0, 1.0  # whatever the data: it cannot be more, or less
    return _Found(words, kept, broken, told(missed, found.n, rule))


def _p(
    found: Bootstrap, at_most: bool, bound: float, missed: tuple[float, float]
) -> tuple[float, float]:
    """Return the p values against 'the bound is broken' and 'it is kept'.

    Args:
        found: What is bounded.
        at_most: Whether from above.
        bound: The bound.
        missed: How much lower and higher it may be by units of a kind that was not drawn.
    """
    if at_most:
        return found.p_above(bound - missed[1]), found.p_below(bound)
    return found.p_below(bound + missed[0]), found.p_above(bound)


def _proportion_p(successes: int, n: int, bound: float) -> tuple[float, float]:
    """Return the p values of 'at most' and 'at least' the bound, of the exact binomial test."""
    return tuple(  # type: ignore[return-value]
        float(binomtest(successes, n, min(bound, 1.0), alternative=side).pvalue)
        for side in ("greater", "less")
    )


def _change(
    statistic: Statistic, name: str, outcome: Outcome, baseline: Evaluation | None, rule: Rule
) -> _Found:
    if baseline is None:
        raise ExciseError("a change needs a model to compare with: excise eval BASELINE EDITED")
    before = baseline[name]
    if statistic not in comparable(name, before, outcome):
        raise ExciseError(f"{statistic.name} counts other things in the two models: name another")
    comparison = Comparison(name, statistic, before, outcome)
    found = comparison.paired.relative if rule.relative else comparison.paired.difference
    words = f"{statistic.name} {_percent(found) if rule.relative else _plain(found)}"
    missed = hidden(statistic, dict(outcome.columns), rule)
    if rule.relative and any(missed):
        size = abs(before.measures[statistic.name].value)
        missed = missed[0] / size if size else math.inf, missed[1] / size if size else math.inf
    at_most = rule.kind in ("max_increase", "min_decrease", "equivalence")
    bound = -rule.bound if rule.kind.endswith("decrease") else rule.bound
    kept, broken = _p(found, at_most, bound, missed)
    if rule.kind == "equivalence":
        lower = _p(found, False, 1 / (1 + rule.bound) - 1, missed)
        kept, broken = max(kept, lower[0]), min(broken, lower[1])
    return _Found(words, kept, broken, told(missed, found.n, rule))


def _percent(found: Bootstrap) -> str:
    low, high = found.interval()
    return f"{100 * found.value:+.2f} % [{100 * low:+.2f}, {100 * high:+.2f}]"


def _plain(found: Bootstrap) -> str:
    low, high = found.interval()
    return f"{found.value:+.3g} [{low:+.3g}, {high:+.3g}]"


def junit(gates: Sequence[Gate]) -> str:
    """Write gates as JUnit XML: a suite per model, a case per check."""
    root = ElementTree.Element("testsuites", name="excise gate")
    for gate in gates:
        failures = sum(check.status in ("fail", "inconclusive", "unknown") for check in gate.checks)
        errors = sum(check.status == "error" for check in gate.checks)
        model = _printable(gate.model)
        suite = ElementTree.SubElement(
            root, "testsuite", name=model, tests=str(len(gate.checks)),
            failures=str(failures), errors=str(errors),
        )  # fmt: skip
        for check in gate.checks:
            name = _printable(check.name)
            case = ElementTree.SubElement(suite, "testcase", name=name, classname=model)
            if not check.passed:
                tag = "error" if check.status == "error" else "failure"
                detail = _printable(check.detail)
                found = ElementTree.SubElement(case, tag, type=check.status, message=detail)
                found.text = detail
    ElementTree.indent(root)
    head = '<?xml version="1.0" encoding="UTF-8"?>'  # ElementTree would name the locale's
    return f"{head}\n{ElementTree.tostring(root, encoding='unicode')}\n"


def _printable(text: str) -> str:
    """Replace what XML cannot hold: control characters, halves of surrogate pairs."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
