"""Which heads or neurons carry a behaviour: what they add to it, per unit of what they cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.errors import ExciseError, look_up
from ...core.families import ModelView
from ...core.identity import model_hash
from ...edits.edit import Edit
from ..data.behaviour import BehaviourSet
from .maths import (
    Samples,
    Scores,
    auroc,
    benefit_per_cost,
    difference,
    root_mean_square,
    top_units,
)
from .sources import (
    BOTH,
    SEEDS,
    Component,
    activations,
    highest,
    mean_size,
    output_norms,
    relevances,
    root_mean,
)


COMPONENTS: tuple[Component, ...] = ("neurons", "heads")


@dataclass(frozen=True, eq=False)
class Contrast:
    """Scores of a model's heads or neurons for one behaviour."""

    component: Component
    scores: Scores
    """Higher is cut first."""
    low: Scores
    """Lower confidence bound of the scores."""
    protected: Tensor
    """bool (layers, units): those that general text needs most, which are never cut."""
    config: dict[str, Any]
    """Recipe: model, method, options, numbers and fingerprints of the samples."""
    rank_by: Literal["scores", "low"] = "scores"
    factors: Scores | None = None
    """Factor of each unit, where the method has its own (AurA)."""
    benefit: Scores | None = None
    """Lower bound of what removing each unit does against the behaviour, whatever it costs."""

    def top(self, k: int) -> list[tuple[int, int]]:
        """Return the first k as (layer, unit), protected ones left out.

        Raises:
            ExciseError: There are not as many.
        """
        free = int((~self.protected).sum())
        if not 1 <= k <= free:
            raise ExciseError(f"k is {k}: there are 1 to {free} {self.component} to choose from")
        return top_units(getattr(self, self.rank_by), k, self.protected)

    def edit(self, k: int, factor: float | Literal["own"] = 0.0) -> Edit:
        """Make an edit that scales the first k components.

        Args:
            k: How many.
            factor: One for all: 0 removes, 0.5 damps, negative ones turn the sign; `own` takes the
                method's.

        Raises:
            ExciseError: There are not as many, or the method has no factors of its own.
        """
        units = self.top(k)
        if factor != "own":
            return Edit.of_units(self.component, dict.fromkeys(units, float(factor)))
        if self.factors is None:
            raise ExciseError(
                f"contrast {self.config['method']!r} has no factors of its own: give one"
            )
        own = {unit: float(self.factors[unit]) for unit in units if self.factors[unit] != 1}
        if not own:
            raise ExciseError(f"contrast {self.config['method']!r} scales none of the first {k}")
        return Edit.of_units(self.component, own)

    @property
    def n(self) -> int:
        """How many components were scored."""
        return self.scores.numel()

    @property
    def never_cut(self) -> dict[str, Tensor]:
        """Protected components, as `random_edits` takes them."""
        return {self.component: self.protected}


@dataclass(frozen=True)
class Request:
    """All that a contrast method may look at."""

    model: Any
    behaviour: BehaviourSet
    component: Component
    c: float
    z: float
    seed: str
    random_seed: int
    batch_size: int
    progress: bool

    def relevances(self, method: str) -> list[tuple[Samples, Samples, Samples]]:
        """Return, for each seed, relevance of undesired, general and reference samples."""
        behaviour = self.behaviour
        sets = [behaviour.undesired, behaviour.general]
        sets += [behaviour.kept] if behaviour.kept else []
        results = []
        for start in SEEDS.values() if self.seed == BOTH else [SEEDS[self.seed]]:
            found = [
                relevances(self.model, samples, self.component, method, start,
                           self.batch_size, self.progress)
                for samples in sets
            ]  # fmt: skip
            results.append((found[0], found[1], found[-1]))
        return results

    def activations(self, reduce: Callable[..., Tensor]) -> tuple[Samples, Samples]:
        """Return per-sample activations of undesired and general samples."""
        first, second = (
            activations(self.model, samples, self.component, reduce, self.batch_size)
            for samples in (self.behaviour.undesired, self.behaviour.general)
        )
        return first, second


@dataclass(frozen=True)
class Found:
    """What a contrast method makes of a request."""

    scores: Scores
    error: Scores | None = None
    """Standard error of the scores."""
    cost: Scores | None = None
    """What general text loses with each unit; the most costly are protected."""
    factors: Scores | None = None
    benefit: tuple[Scores, Scores] | None = None
    """Mean and standard error of the numerator of the scores, where they have one."""


@dataclass(frozen=True)
class ContrastMethod:
    """One way to contrast."""

    name: str
    summary: str
    source: str
    find: Callable[[Request], Found] = field(repr=False)
    own_factors: bool = False
    """Whether it says by what each unit is scaled."""


def _ratio(method: str) -> Callable[[Request], Found]:
    def find(request: Request) -> Found:
        parts = []
        for undesired, general, reference in request.relevances(method):
            mean, error = difference(undesired, general, request.behaviour.paired)
            cost = root_mean_square(reference)
            ratio, bound = (benefit_per_cost(part, cost, request.c) for part in (mean, error))
            parts.append(Found(ratio, bound, cost, benefit=(mean, error)))
        return _added(parts)

    return find


def _relevance_difference(method: str) -> Callable[[Request], Found]:
    def find(request: Request) -> Found:
        parts = []
        for undesired, general, reference in request.relevances(method):
            mean, error = difference(undesired, general, paired=False)
            parts.append(Found(mean, error, root_mean_square(reference), benefit=(mean, error)))
        return _added(parts)

    return find


def _added(parts: Sequence[Found]) -> Found:
    """Add what several seeds say, each in units of its root mean square over all units.

    Errors are added as well: the same samples make them, so they are no independent ones.
    """
    if len(parts) == 1:
        return parts[0]

    def over(values: Scores, by: Scores) -> Scores:
        return values / by.square().mean().sqrt().clamp_min(1e-30)

    scores = error = cost = mean = spread = torch.zeros(())
    for part in parts:
        assert part.error is not None
        assert part.cost is not None
        assert part.benefit is not None
        scores = scores + over(part.scores, part.scores)
        error = error + over(part.error, part.scores)
        cost = cost + over(part.cost, part.cost)
        mean = mean + over(part.benefit[0], part.benefit[0])
        spread = spread + over(part.benefit[1], part.benefit[0])
    return Found(scores, error, cost, benefit=(mean, spread))


def _activation(request: Request) -> Found:
    undesired, general = request.activations(mean_size)
    floor = 0.01 * general.mean()
    return Found(undesired.mean(0) / (general.mean(0) + floor))


def _wanda(request: Request) -> Found:
    undesired, general = request.activations(root_mean)
    norms = output_norms(request.model, request.component)
    mean, error = difference(undesired, general, request.behaviour.paired)
    return Found(mean * norms, error * norms)


def _aura(request: Request) -> Found:
    undesired, general = request.activations(highest)
    area = auroc(undesired, general)
    return Found(area - 0.5, factors=(1 - 2 * (area - 0.5).clamp_min(0)))


def _random(request: Request) -> Found:
    generator = torch.Generator().manual_seed(request.random_seed)
    return Found(torch.rand(_shape(request.model, request.component), generator=generator))


def _magnitude(request: Request) -> Found:
    return Found(-output_norms(request.model, request.component))


_ALL = (
    ContrastMethod("lrp", "difference of relevance over its size on general text", "this project",
                   _ratio("lrp")),
    ContrastMethod("lrp-difference", "difference of mean relevance", "arXiv 2506.13727",
                   _relevance_difference("lrp")),
    ContrastMethod("gradient", "as lrp, with the plain gradient times activation", "this project",
                   _ratio("gradient-x-activation")),
    ContrastMethod("gradient-difference", "difference of plain gradient times activation",
                   "arXiv 2506.13727, its baseline",
                   _relevance_difference("gradient-x-activation")),
    ContrastMethod("activation", "ratio of mean absolute activations", "arXiv 2403.01267",
                   _activation),
    ContrastMethod("wanda-difference", "difference of output norm times activation norm",
                   "arXiv 2306.11695, as in 2506.13727", _wanda),
    ContrastMethod("aura", "how well the largest activation tells the sets apart",
                   "arXiv 2407.12824", _aura, own_factors=True),
    ContrastMethod("random", "seeded uniform numbers: the control", "none", _random),
    ContrastMethod("magnitude", "smallest output norm first", "none", _magnitude),
)  # fmt: skip
CONTRASTS: dict[str, ContrastMethod] = {method.name: method for method in _ALL}
"""Every contrast by name; what lists, checks or documents them reads this table."""


def contrast(
    model: Any,
    behaviour: BehaviourSet,
    method: str = "lrp",
    component: Component = "neurons",
    *,
    c: float = 0.3,
    z: float = 1.0,
    seed: str = "logit",
    rank_by: Literal["scores", "low"] = "low",
    protect: float = 0.01,
    random_seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> Contrast:
    """Score heads or neurons for a behaviour.

    Args:
        model: A causal language model of a supported family.
        behaviour: Undesired and general samples.
        method: A name of `CONTRASTS`.
        component: `neurons` or `heads`.
        c: How much of the median cost is added to each cost (`lrp`, `gradient`).
        z: Standard errors between `scores` and `low`.
        seed: What relevance starts from: `logit` or `logprob` of each explained token, or `both`.
            Where a model is sure of what it says, its log-probability has no slope left: `both`
            finds fewer planted neurons in Llamas, as many in OPTs.
        rank_by: Which of the two `top` goes by.
        protect: Share of the units, those that cost general text most, that is never cut.
        random_seed: Of the method `random`.
        batch_size: Samples per pass.
        progress: Whether to draw a progress bar on a terminal.

    Raises:
        ExciseError: An unknown name, or a number out of range.
    """
    chosen = look_up("contrast", method, CONTRASTS)
    if component not in COMPONENTS:
        raise ExciseError(f"unknown component {component!r}: known are {', '.join(COMPONENTS)}")
    if seed != BOTH:
        look_up("seed", seed, SEEDS)
    if not 0 <= protect < 1 or c < 0 or z < 0:
        raise ExciseError(
            f"protect={protect}, c={c}, z={z}: give 0 <= protect < 1, and no negative c or z"
        )
    found = chosen.find(
        Request(model, behaviour, component, c, z, seed, random_seed, batch_size, progress)
    )
    low = found.scores if found.error is None else found.scores - z * found.error
    config = {
        "model": model.config.name_or_path or model.config.model_type,
        "model_hash": model_hash(model),
        "dtype": str(model.dtype),
        "behaviour": behaviour.name,
        "paired": behaviour.paired,
        "undesired": len(behaviour.undesired),
        "general": len(behaviour.general),
        "kept": len(behaviour.kept),
        "data": behaviour.fingerprint,
        "method": method,
        "component": component,
        **{"c": c, "z": z, "seed": seed, "rank_by": rank_by, "protect": protect},
        "random_seed": random_seed if method == "random" else None,
    }
    benefit = None if found.benefit is None else found.benefit[0] - z * found.benefit[1]
    protected = _protected(found, protect)
    return Contrast(
        component, found.scores, low, protected, config, rank_by, found.factors, benefit
    )


def with_rank(contrast: Contrast, rank_by: Literal["scores", "low"]) -> Contrast:
    """Return the same contrast, ranked by its scores or by their lower bounds."""
    config = {**contrast.config, "rank_by": rank_by}
    return replace(contrast, rank_by=rank_by, config=config)


def _shape(model: Any, component: Component) -> tuple[int, int]:
    view = ModelView.of(model)
    return len(view.layers), view.d_mlp if component == "neurons" else view.n_heads


def _protected(found: Found, share: float) -> Tensor:
    protected = torch.zeros(found.scores.shape, dtype=torch.bool)
    if found.cost is not None and (n := int(share * protected.numel())):
        protected.view(-1)[found.cost.flatten().topk(n).indices] = True
    return protected
