"""What is reported of a circuit, measured on test prompts that nothing was chosen on."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..core.statistics import Measure, wilson
from .ablation import ABLATIONS, Ablation, Ablator
from .discovery import Choice
from .faithfulness import FRACTIONS, Outcome, Trial, jaccard, sizes
from .levels import RANKS, Ranking, matched_random
from .search import Parts, Search


@dataclass
class Evidence:
    """Measures a circuit on test prompts; collects what a reader has to be warned of."""

    trial: Trial
    model: Any
    parts: Parts
    search: Search
    batch_size: int
    progress: bool = False

    def __post_init__(self):
        self.warnings: list[str] = []
        half = max(min(8, len(self.parts.test)), len(self.parts.test) // 2)
        self.half = self.parts.test[:half]
        self.short = self._trial(self.search.ablation)
        """Half of the test prompts, for what takes many runs: curves, controls, ablations."""

    def _trial(self, ablation: Ablation) -> Trial:
        ablator = Ablator(self.model, self.half, ablation, self.parts.train, self.batch_size)
        return Trial(ablator, self.trial.level)

    def measured(self, chosen: Choice, scores: Tensor) -> dict[str, Any]:
        """Return every metric as JSON values."""
        trial, search = self.trial, self.search
        outcome = trial.run(chosen)
        full = trial.full
        found: dict[str, Any] = {
            "faithfulness": as_json(trial.faithfulness(outcome)),
            "distance": as_json(_distance(trial.faithfulness(outcome))),
            "completeness": as_json(trial.faithfulness(trial.run(~chosen))),
            "accuracy": as_json(trial.accuracy(outcome)),
            "logit_difference": as_json(trial.mean("logit difference", outcome.difference)),
            "kl": as_json(trial.mean("kl", outcome.kl)),
            "model_accuracy": as_json(trial.accuracy(full)),
            "model_logit_difference": as_json(trial.mean("logit difference", full.difference)),
            "empty_logit_difference": as_json(
                trial.mean("logit difference", trial.empty.difference)
            ),
        }
        found["ablations"] = self._ablations(chosen, found["faithfulness"])
        found["random"] = self._random(chosen)
        found |= self._curves(scores)
        if search.minimality:
            found["minimality"] = self._minimality(chosen)
        self._warn_of_distance(found["faithfulness"], search.faithfulness)
        return found

    def _ablations(self, chosen: Choice, own: dict[str, Any]) -> dict[str, Any]:
        """Measure faithfulness under every ablation; warn where two disagree."""
        found = {self.search.ablation: own}
        for ablation in ABLATIONS:
            if (
                ablation in found
                or self.trial.level.name == "weights"
                or (ablation != "zero" and self.parts.test.counterfactual is None)
            ):
                continue
            other = self._trial(ablation)
            found[ablation] = as_json(other.faithfulness(other.run(chosen)))
        for name, row in found.items():
            apart = row["ci"][0] > own["ci"][1] or row["ci"][1] < own["ci"][0]
            if apart and abs(row["value"] - own["value"]) > 0.2:
                self.warnings.append(
                    f"{name} ablation disagrees: faithfulness {row['value']:.2f} there, "
                    f"{own['value']:.2f} under {self.search.ablation} ablation"
                )
        return found

    def _minimality(self, chosen: Choice, least: float = 0.01) -> dict[str, Any]:
        """Measure the share of components without any one of which faithfulness changes.

        After Wang et al. 2022 (arXiv 2211.00593): by at least 1 % of the model's own behaviour.
        """
        whole = self.short.value(chosen)
        matters = []
        for index in tqdm(chosen.nonzero()[:, 0].tolist(), "minimality",
                          disable=None if self.progress else True):  # fmt: skip
            without = chosen.clone()
            without[index] = False
            matters.append(abs(whole - self.short.value(without)) >= least)
        low, high = wilson(sum(matters), len(matters))
        return {"value": float(np.mean(matters)), "ci": [low, high], "n": len(matters)}

    def _random(self, chosen: Choice) -> dict[str, Any]:
        """Measure random circuits with as many components of each kind in each layer."""
        groups = self.trial.level.groups(self.trial.shape)
        values = [
            self.short.value(matched_random(chosen, groups, self.search.seed + draw))
            for draw in range(self.search.controls)
        ]
        if not values:
            return {}
        ends = np.quantile(values, (0.025, 0.975)) if len(values) > 1 else (-math.inf, math.inf)
        return {"value": float(np.mean(values)), "ci": list(map(float, ends)),
                "draws": len(values)}  # fmt: skip

    def _curves(self, scores: Tensor) -> dict[str, Any]:
        """Measure faithfulness against size: CPR by signed rank, CMD by size of the score."""
        trial = self.short
        kept = sizes(len(scores), FRACTIONS)
        groups = trial.level.groups(trial.shape)
        curves: dict[str, Any] = {}
        with tqdm(total=len(RANKS) * len(kept), desc="testing",
                  disable=None if self.progress else True) as bar:  # fmt: skip
            for rank in RANKS:
                ranking = Ranking(scores, rank)
                outcomes: list[Outcome] = []
                rows: list[dict[str, Any]] = []
                for size in kept:
                    part = trial.tidy(ranking.top(size))
                    # most small fractions keep nothing, and the last one all
                    outcomes.append(
                        trial.empty if not bool(part.any())
                        else trial.full if size == len(scores) else trial.run(part)
                    )  # fmt: skip
                    rows.append({"size": size, **as_json(trial.faithfulness(outcomes[-1]))})
                    if rank == self.search.rank and 0 < size < len(scores):
                        control = matched_random(part, groups, self.search.seed)
                        rows[-1]["random"] = trial.value(control)
                    bar.update()
                areas = trial.areas(FRACTIONS, outcomes)
                curves[rank] = rows
                name = "cpr" if rank == "signed" else "cmd"
                curves[name] = as_json(getattr(areas, name))
        return {"cpr": curves.pop("cpr"), "cmd": curves.pop("cmd"), "curves": curves}

    def _warn_of_distance(self, found: dict[str, Any], target: float) -> None:
        if self.search.size is None and found["ci"][1] < target:
            self.warnings.append(
                f"chosen for faithfulness {target} on validation prompts, the circuit has "
                f"{found['value']:.2f} on the test prompts"
            )
        if found["value"] > 2 - target:
            self.warnings.append(
                f"the circuit exceeds the model (faithfulness {found['value']:.2f}): parts that "
                "speak against the answer are not in it"
            )


def as_json(measure: Measure) -> dict[str, Any]:
    """Return a measure as JSON values."""
    return {"value": measure.value, "ci": list(measure.ci), "n": measure.n}


def _distance(found: Measure) -> Measure:
    """Return |1 - f| with the interval that follows from that of f."""
    ends = sorted(abs(1 - end) for end in found.ci)
    inside = found.ci[0] <= 1.0 <= found.ci[1]
    return Measure(abs(1 - found.value), (0.0 if inside else ends[0], ends[1]), found.n,
                   found.protocol)  # fmt: skip


def stability(resampled: Tensor, size: int, rank: str, pairs: int = 100) -> dict[str, Any]:
    """Return the mean overlap of circuits of one size from bootstrap samples of the prompts."""
    circuits = [Ranking(scores, rank).top(size) for scores in resampled[: 2 * pairs]]
    overlaps = [jaccard(a, b) for a, b in zip(circuits[::2], circuits[1::2], strict=True)]
    low, high = np.quantile(overlaps, (0.025, 0.975))
    return {"value": float(np.mean(overlaps)), "ci": [float(low), float(high)], "n": len(overlaps)}
