"""The proof: an edit measured on data that neither found nor chose it, beside random edits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.data import Sample
from ..core.errors import ExciseError, look_up, shown
from ..core.families import ModelView
from ..core.loading import Loaded
from ..core.statistics import Measure, short
from ..edits.edit import Edit
from ..eval.gate import Check, check_gate
from ..eval.outcome import Metric
from ..eval.policy import RARE, REQUIRED, Rule, parse_policy
from ..eval.report import Report
from ..eval.run import Evaluation, evaluate
from .controls import CONTROLS, Controls, measure_controls, random_edits
from .data.target import Judgement, Target
from .dose import DoseResponse
from .durability import Durability, durability


CONFIDENCE = 0.95
SIDE_EFFECTS = {
    "repetition": Judgement("repetition", "unique_token_ratio", "lower"),
    "identity": Judgement("identity", "token_perplexity", "lower"),
}
"""What else a budget can be set on, besides perplexity and tasks."""


@dataclass(frozen=True)
class ReportCard:
    """The report card of a correction."""

    target: Target
    edit: Edit
    report: Report
    """The model before and after, on test data, with the gate's verdict."""
    dose: DoseResponse
    controls: Controls | None
    shape: tuple[int, int, int]
    """Layers, heads per layer, neurons per layer."""
    durable: tuple[Durability, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where the components come from: numbers of examples, warnings, the recipe."""

    @property
    def passed(self) -> bool:
        """Whether the gate was met."""
        return self.report.passed

    @property
    def before(self) -> Evaluation:
        """The model as it was."""
        return self.report.evaluations[0]

    @property
    def after(self) -> Evaluation:
        """The corrected model."""
        return self.report.evaluations[1]

    @property
    def gain(self) -> Measure:
        """Share of the behaviour that is gone."""
        return self.target.judge.gain(self.before, self.after)

    def evidence(self) -> dict[str, Any]:
        """Return the few numbers that stand in the edit itself."""
        cost = self.report.comparisons[0][1]
        perplexity = next(c for c in cost if c.name == "perplexity.token_perplexity")
        found: dict[str, Any] = {
            "verdict": "met" if self.passed else "not met",
            "behaviour_gone": [self.gain.value, *self.gain.ci],
            "judge": self.target.judge.name,
            "n": self.gain.n,
            "perplexity": [perplexity.relative.value, *perplexity.relative.ci],
        }
        if self.controls:
            found["controls"] = {"n": self.controls.n, "p": self.controls.p,
                                 "band": list(self.controls.gain.band)}  # fmt: skip
        return found


def rules_of(
    target: Target,
    budgets: Mapping[str, float],
    least: float = 0.0,
    min_samples: int = 30,
    min_windows: int = 16,
    rare: float = RARE,
) -> list[Rule]:
    """Return what has to be shown of a correction unless a policy says otherwise.

    Args:
        target: Its judge, and the second one, have to show a gain.
        budgets: `perplexity`: largest relative change, both ways; `repetition` and `identity`:
            largest relative harm; `tasks` or a task's name: largest loss of accuracy, in absolute
            terms.
        least: Share of the behaviour that must be gone by the first judge.
        min_samples: Prompts and examples behind every bounded number.
        min_windows: Windows of text.
        rare: Damage in this share of units must not stay unseen, nor one in 15 % of our prompts
            for side effects, of which there are no more.
    """
    amount = f"{100 * budgets['perplexity']:.10g} %"
    body: dict[str, Any] = {"max_increase": amount, "min_samples": min_windows, "rare": rare}
    if budgets["perplexity"] > 0:
        body["equivalence"] = f"{100 * CONFIDENCE:g} %"
    rules = parse_policy({"held_out": REQUIRED, "perplexity": body})
    rules.append(target.judge.rule(least, CONFIDENCE, min_samples, rare))
    if target.second:
        rules.append(target.second.rule(0.0, CONFIDENCE, min_samples, rare))
    for name, bound in budgets.items():
        if name == "perplexity":
            continue
        if name in SIDE_EFFECTS:
            one = SIDE_EFFECTS[name]
            kind = "max_decrease" if name == "repetition" else "max_increase"
            rules.append(
                Rule(one.outcome, kind, bound, True, CONFIDENCE, min(min_samples, 20),
                     one.statistic, rare=max(rare, 0.15))
            )  # fmt: skip
        else:
            section = "tasks.*" if name == "tasks" else f"tasks.{name}"
            rules.append(Rule(section, "max_decrease", bound, False, CONFIDENCE, min_samples))
    return rules


def prove(
    loaded: Loaded,
    edit: Edit,
    target: Target,
    examples: Sequence[Any],
    text: Metric,
    others: Sequence[Metric],
    rules: Sequence[Rule],
    dose: DoseResponse,
    *,
    seen: frozenset[str],
    controls: int = CONTROLS,
    protected: Mapping[str, Tensor] | None = None,
    forms: Sequence[str] = (),
    benign: Sequence[Sample] = (),
    facts: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> ReportCard:
    """Measure a correction and decide on it.

    Args:
        loaded: The unedited model, which is left as it was.
        edit: What was chosen.
        target: What is to go.
        examples: Those for the test.
        text: Perplexity on the text for the test.
        others: Tasks and side effects.
        rules: From `rules_of` or `read_policy`.
        dose: How the edit was chosen.
        seen: Hashes of all texts that found or chose it; measuring one again fails the gate.
        controls: How many random edits; 0 is none, and the card says so.
        protected: As in `random_edits`.
        forms: In which forms durability is measured; see `durability.FORMS`.
        benign: What is fine-tuned on for that.
        facts: What else the card has to say.
        seed: Of the random edits.
        cache: Folder of rows measured before; see `evaluate`.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given a line per step.
    """
    core = [target.metric(examples), text]
    metrics = [*core, *others]
    before = evaluate(loaded, metrics, cache=cache, progress=progress)
    if tell:
        tell("measured before")
    with edit.applied(loaded.model):
        after = evaluate(loaded, metrics, cache=cache, progress=progress, attribution=seen)
    after = replace(after, model=f"{loaded.name} corrected")
    if tell:
        tell(f"measured after: {target.judge.name} {target.judge.gain(before, after)} gone")
    found = None
    if controls:
        drawn = random_edits(edit, loaded.model, controls, seed, protected)
        found = measure_controls(
            loaded, drawn, core, target.judge, before, after,
            cache=cache, progress=progress, tell=tell,
        )  # fmt: skip
    gate = check_gate(rules, after, before)
    gate = replace(gate, checks=(*gate.checks, control_check(found, controls)))
    rows = ()
    if forms:
        rows = durability(
            loaded, edit, core, target.judge, benign, forms, cache=cache, progress=progress
        )
    view = ModelView.of(loaded.model)
    return ReportCard(
        target, edit, Report((before, after), (gate,)), dose, found,
        (len(view.layers), view.n_heads, view.d_mlp), tuple(rows), dict(facts or {}),
    )  # fmt: skip


def control_check(controls: Controls | None, asked: int) -> Check:
    """Decide whether the edit stands out from random ones of its size and profile."""
    if controls is None:
        why = "no random edit was measured" if not asked else "no random edit could be measured"
        return Check("controls", "inconclusive" if not asked else "error", why)
    gain, n, p = controls.gain, controls.n, controls.p
    low, high = gain.band
    silent = ""
    if controls.failed:
        silent = f", {controls.failed} of them could not be measured and count as larger"
    detail = (
        f"{100 * gain.edit:+.1f} % gone, {n} random edits of the same layers {100 * low:+.1f} to "
        f"{100 * high:+.1f} %{silent}, p = {short(p)}"
    )
    if p <= 1 - CONFIDENCE:
        return Check("controls", "pass", detail)
    if n < round(1 / (1 - CONFIDENCE)) - 1 and gain.edit > max(gain.random) and not controls.failed:
        return Check("controls", "inconclusive", f"{detail}: more than all, but they are too few")
    return Check("controls", "fail", detail)


def check_budgets(given: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Return budgets by name; that of perplexity is 1 % unless said otherwise.

    Args:
        given: Shares, as in `{"perplexity": 0.01, "ioi": 0.01}`.
        tasks: Names of tasks.

    Raises:
        ExciseError: No such name, or no share.
    """
    known = ("perplexity", *SIDE_EFFECTS, "tasks", *tasks)
    for name, share in given.items():
        look_up("budget", name, dict.fromkeys(known))
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise ExciseError(
                f"the budget of {name} is {shown(share)}: give a share below 1, as in 0.01 (1%)"
            )
    return {"perplexity": 0.01, **given}
