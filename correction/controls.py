"""Random edits of the same size and layer profile: what cutting alone does.

An effect that random components of the same layers have as well is no effect of those chosen.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.loading import Loaded
from ..edits.changes import Layout, Unit
from ..edits.edit import Edit
from ..eval.outcome import Metric
from ..eval.run import Evaluation, evaluate
from .data.target import Judgement
from .dose import PERPLEXITY


CONTROLS = 20
"""With so many, an edit that beats all of them does so with p = 1 / 21, below 5 %."""
QUANTILES = (0.05, 0.95)


def random_edits(
    edit: Edit,
    model: Any,
    n: int = CONTROLS,
    seed: int = 0,
    protected: Mapping[str, Tensor] | None = None,
) -> list[Edit]:
    """Draw edits that cut as many heads, neurons or weights of each layer, by the same factors.

    None holds a component of the edit, nor a protected one; no two are equal.

    Args:
        edit: What is imitated.
        model: The live model, for the number of units per layer.
        n: How many; fewer are returned where fewer different ones exist.
        seed: Of the draws.
        protected: By `heads` or `neurons`, true at units that are never cut, (layers, units).

    Raises:
        ExciseError: A layer has too few components that are neither chosen nor protected.
    """
    if n < 1:
        raise ExciseError(f"controls is {n}: give at least 1")
    view = ModelView.of(model)
    layout = Layout.of_model(view)
    pools = [
        *_unit_pools("heads", edit.heads, view.n_heads, protected or {}),
        *_unit_pools("neurons", edit.neurons, view.d_mlp, protected or {}),
        *_weight_pools(edit, layout),
    ]
    n = min(n, math.prod(pool.possible for pool in pools))
    found: dict[Any, Edit] = {}
    draw = random.Random(f"excise {seed}")
    while len(found) < n:
        drawn = [pool.draw(draw) for pool in pools]
        found.setdefault(tuple(tuple(sorted(one)) for one in drawn), _edit_of(edit, pools, drawn))
    return list(found.values())


@dataclass(frozen=True)
class _Pool:
    """The components of one layer or matrix that may be drawn, and how many go."""

    kind: str
    place: int | str
    size: int
    taken: frozenset[int]
    """Those of them that are never drawn: chosen, or protected."""
    factors: Sequence[float]

    def __post_init__(self):
        if self.free < len(self.factors):
            where = f"layer {self.place}" if isinstance(self.place, int) else self.place
            raise ExciseError(
                f"{where} has {self.free} {self.kind} that are neither chosen nor protected, and "
                f"a control needs {len(self.factors)}: choose fewer, or no `controls` (0)"
            )

    @property
    def free(self) -> int:
        return self.size - len(self.taken)

    @property
    def possible(self) -> int:
        return math.comb(self.free, len(self.factors))

    def draw(self, generator: random.Random) -> dict[int, float]:
        # so many that enough are left; a matrix has too many elements to list
        drawn = generator.sample(range(self.size), len(self.factors) + len(self.taken))
        free = (at for at in drawn if at not in self.taken)
        return dict(zip(free, self.factors, strict=False))


def _unit_pools(
    kind: str, units: Mapping[Unit, float], width: int, protected: Mapping[str, Tensor]
) -> list[_Pool]:
    mask = protected.get(kind)
    pools = []
    for layer in sorted({layer for layer, _ in units}):
        factors = {unit: factor for (at, unit), factor in units.items() if at == layer}
        kept = set() if mask is None else set(mask[layer].nonzero()[:, 0].tolist())
        pools.append(_Pool(kind, layer, width, frozenset(factors) | kept, [*factors.values()]))
    return pools


def _weight_pools(edit: Edit, layout: Layout) -> list[_Pool]:
    return [
        _Pool("weights", name, math.prod(layout.shapes[name]), frozenset(indices.tolist()),
              factors.tolist())
        for name, (indices, factors) in edit.weights.items()
    ]  # fmt: skip


def _edit_of(edit: Edit, pools: Sequence[_Pool], drawn: Sequence[dict[int, float]]) -> Edit:
    import torch

    units: dict[str, dict[Unit, float]] = {"heads": {}, "neurons": {}}
    weights = {}
    for pool, one in zip(pools, drawn, strict=True):
        if isinstance(pool.place, int):
            units[pool.kind].update({(pool.place, unit): f for unit, f in one.items()})
        else:
            weights[pool.place] = (torch.tensor(list(one)), torch.tensor(list(one.values())))
    return replace(edit, **units, weights=weights, biases={}, config={})


@dataclass(frozen=True)
class Band:
    """One number of an edit among those of the random ones."""

    name: str
    edit: float
    random: tuple[float, ...]
    """Of each control that could be measured, in the order drawn."""

    @property
    def band(self) -> tuple[float, float]:
        """The 5 % and 95 % quantile of the controls."""
        low, high = np.quantile(self.random, QUANTILES)
        return float(low), float(high)

    def p(self, failed: int = 0) -> float:
        """Return the share of edits, the chosen one too, that are at least as large (one-sided).

        Args:
            failed: Controls that could not be measured. They count as larger: what silences the
                model leaves nothing of the behaviour.
        """
        larger = failed + sum(value >= self.edit for value in self.random)
        return (1 + larger) / (1 + failed + len(self.random))

    def to_json(self, failed: int = 0) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "edit": self.edit,
            "mean": float(np.mean(self.random)),
            "band": list(self.band),
            "quantiles": list(QUANTILES),
            "most": max(self.random),
            "n": len(self.random),
            "p": self.p(failed),
            "random": list(self.random),
        }


@dataclass(frozen=True)
class Controls:
    """What random edits did, beside the one that is to be proved."""

    gain: Band
    """Share of the behaviour that is gone."""
    cost: Band
    """Relative change of perplexity."""
    failed: int = 0
    """Controls that could not be measured, as where the model said nothing any more."""

    @property
    def p(self) -> float:
        """Share of edits, the chosen one and those that failed among them, that gain as much."""
        return self.gain.p(self.failed)

    @property
    def n(self) -> int:
        """Random edits, those that failed among them."""
        return len(self.gain.random) + self.failed


def measure_controls(
    loaded: Loaded,
    edits: Sequence[Edit],
    metrics: Sequence[Metric],
    judge: Judgement,
    before: Evaluation,
    after: Evaluation,
    *,
    cache: Path | None = None,
    progress: bool = False,
    tell: Callable[[str], None] | None = None,
) -> Controls | None:
    """Measure random edits on the very units of the edit.

    Args:
        loaded: The unedited model, which is left as it was.
        edits: From `random_edits`.
        metrics: Behaviour and perplexity, as `before` and `after` were measured.
        judge: What says how much of the behaviour there is.
        before: The unedited model.
        after: The edited one.
        cache: Folder of rows measured before; see `evaluate`.
        progress: Whether to draw progress bars on a terminal.
        tell: Is given a line per control.

    Returns:
        The bands; None where not one control could be measured.
    """
    gains, costs, failed = [], [], 0
    for number, edit in enumerate(edits, 1):
        with edit.applied(loaded.model):
            try:
                found = evaluate(loaded, metrics, cache=cache, progress=progress)
                gain = judge.gain(before, found).value
            except ExciseError as error:  # as where too many completions are empty
                failed += 1
                if tell:
                    tell(f"control {number} of {len(edits)} cannot be measured: {error}")
                continue
        cost = PERPLEXITY.compare(before, found).relative.value
        gains.append(gain)
        costs.append(cost)
        if tell:
            tell(
                f"control {number} of {len(edits)}: behaviour gone {100 * gain:+.2f} %, "
                f"perplexity {100 * cost:+.2f} %"
            )
    if not gains:
        return None
    own = PERPLEXITY.compare(before, after).relative.value
    return Controls(
        Band(judge.name, judge.gain(before, after).value, tuple(gains)),
        Band(PERPLEXITY.name, own, tuple(costs)),
        failed,
    )
