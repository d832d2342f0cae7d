"""The contrast for single weights: as for neurons, element by element."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.data import Sample, fingerprint
from ..core.errors import ExciseError, look_up
from ..core.families import ModelView
from ..core.identity import model_hash
from ..lrp.run import score
from .behaviour import BehaviourSet
from .contrast_maths import benefit_per_cost
from .contrast_sources import SEEDS
from .edit import Edit


WEIGHT_METHODS = {"lrp": "lrp", "gradient": "gradient-x-activation", "random": "", "magnitude": ""}
"""Contrasts that rank weights, by the names of `CONTRASTS`, and the LRP method that they take."""


@dataclass(frozen=True, eq=False)
class WeightContrast:
    """Scores of the elements of some weight matrices for one behaviour."""

    scores: Mapping[str, Tensor]
    """By parameter name, in the shape of the parameter; higher is cut first."""
    config: dict[str, Any]
    component: Literal["weights"] = "weights"

    def top(self, k: int) -> dict[str, Tensor]:
        """Return the flat indices of the first k weights, by parameter name.

        Raises:
            ExciseError: There are not as many.
        """
        if not 1 <= k <= self.n:
            raise ExciseError(f"k is {k}: there are 1 to {self.n} weights to choose from")
        best = {n: s.flatten().topk(min(k, s.numel())) for n, s in self.scores.items()}
        _, chosen = torch.cat([found.values for found in best.values()]).topk(k)
        found, start = {}, 0
        for name, (values, indices) in best.items():
            mine = chosen[(chosen >= start) & (chosen < start + len(values))] - start
            start += len(values)
            if len(mine):
                found[name] = indices[mine].sort().values
        return found

    def edit(self, k: int, factor: float | Literal["own"] = 0.0) -> Edit:
        """Make an edit that scales the first k weights.

        Raises:
            ExciseError: There are not as many, or `own`, which weights do not have.
        """
        if factor == "own":
            raise ExciseError("weights have no factors of their own: give one")
        top = self.top(k)
        return Edit(weights={n: (i, torch.full(i.shape, factor)) for n, i in top.items()})

    @property
    def n(self) -> int:
        """How many weights were scored."""
        return sum(scores.numel() for scores in self.scores.values())

    @property
    def never_cut(self) -> dict[str, Tensor]:
        """Nothing is protected."""
        return {}


def weight_contrast(
    model: Any,
    behaviour: BehaviourSet,
    matrices: Sequence[str] = ("*mlp*", "*fc*"),
    method: str = "lrp",
    *,
    c: float = 0.3,
    seed: str = "logit",
    random_seed: int = 0,
    batch_size: int = 8,
    progress: bool = False,
) -> WeightContrast:
    """Score single weights: mean relevance, undesired less general, over its size on general text.

    The size is the root of the second moment per token. There are no bounds: per-sample scores of
    weights would be copies of the model.

    Args:
        model: A causal language model of a supported family.
        behaviour: Undesired and general samples.
        matrices: Glob patterns over the paths of the layers' linears; those that match nothing
            are left out, as families name them differently.
        method: A name of `WEIGHT_METHODS`.
        c: How much of a matrix's median cost is added to each cost.
        seed: What relevance starts from: `logprob` or `logit`.
        random_seed: Of the method `random`.
        batch_size: Samples per pass.
        progress: Whether to draw a progress bar on a terminal.

    Raises:
        ExciseError: No pattern matches, or an unknown name.
    """
    rules = look_up("contrast of weights", method, WEIGHT_METHODS)
    start = look_up("seed", seed, SEEDS)
    known = _matching(model, matrices)

    def means(samples: Sequence[Sample], aggregate: str) -> Mapping[str, Tensor]:
        return score(
            model, samples, start, rules, components=(), weights=known, aggregate=aggregate,
            batch_size=batch_size, progress=progress,
        ).weights  # fmt: skip

    if rules:
        bad, other = means(behaviour.undesired, "signed"), means(behaviour.general, "signed")
        square = means(behaviour.reference, "square")
        scores = {
            name: benefit_per_cost(value - other[name], square[name].sqrt(), c).cpu()
            for name, value in bad.items()
        }
    else:
        generator = torch.Generator().manual_seed(random_seed)
        matched = (path for path in ModelView.of(model).layer_linears() if _any(path, known))
        weights = {f"{path}.weight": model.get_parameter(f"{path}.weight") for path in matched}
        scores = {
            name: torch.rand(weight.shape, generator=generator)
            if method == "random"
            else -weight.detach().float().abs().cpu()
            for name, weight in weights.items()
        }
    config = {
        "model": model.config.name_or_path or model.config.model_type,
        "model_hash": model_hash(model),
        "dtype": str(model.dtype),
        "behaviour": behaviour.name,
        "data": fingerprint((*behaviour.undesired, *behaviour.general, *behaviour.kept)),
        **{"method": method, "component": "weights", "matrices": known, "c": c, "seed": seed},
        "random_seed": random_seed if method == "random" else None,
    }
    return WeightContrast(scores, config)


def _matching(model: Any, patterns: Sequence[str]) -> list[str]:
    paths = list(ModelView.of(model).layer_linears())
    known = [pattern for pattern in patterns if any(fnmatch(path, pattern) for path in paths)]
    if not known:
        raise ExciseError(f"no weight matrix matches {', '.join(patterns)}: try '*'")
    return known


def _any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)
