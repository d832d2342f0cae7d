"""The contrast for single weights: as for neurons, element by element."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.data import Sample
from ...core.errors import ExciseError, look_up
from ...core.families import ModelView
from ...core.identity import model_hash
from ...edits.edit import Edit
from ...lrp.run import score_samples
from ..data.behaviour import BehaviourSet
from .maths import benefit_per_cost
from .sources import SEEDS


WEIGHT_METHODS = {"lrp": "lrp", "gradient": "gradient-x-activation", "random": "", "magnitude": ""}
"""Contrasts that rank weights, by the names of `CONTRASTS`, and the LRP method that they take."""


MLP_MATRICES = ("*mlp*", "*fc*")
"""Glob patterns of the linears of MLPs, as the families name them."""

Ranked = tuple[Tensor, Tensor]
"""Flat indices of elements of a matrix and their scores, highest first."""


@dataclass(frozen=True, eq=False)
class WeightContrast:
    """Scores of the elements of some weight matrices for one behaviour."""

    ranked: Mapping[str, Ranked]
    """By parameter name; of all that were scored, those of the highest scores."""
    n: int
    """How many weights were scored."""
    config: dict[str, Any]
    component: Literal["weights"] = "weights"

    def top(self, k: int) -> dict[str, Tensor]:
        """Return the flat indices of the first k weights, by parameter name.

        Raises:
            ExciseError: There are not as many.
        """
        return {
            name: indices.sort().values for name, (indices, _) in self.leading(k).ranked.items()
        }

    def leading(self, k: int) -> "WeightContrast":
        """Return the same with no more than the first k weights, which is small enough to keep.

        Raises:
            ExciseError: There are not as many.
        """
        known = sum(len(indices) for indices, _ in self.ranked.values())
        if not 1 <= k <= known:
            raise ExciseError(f"k is {k}: there are 1 to {known} weights to choose from")
        # no matrix gives more than k, and each is in order: what it gives is a beginning
        values = [scores[:k] for _, scores in self.ranked.values()]
        of = torch.arange(len(values)).repeat_interleave(torch.tensor([len(v) for v in values]))
        counts = of[torch.cat(values).topk(k).indices].bincount(minlength=len(values)).tolist()
        pairs = zip(self.ranked.items(), counts, strict=True)
        ranked = {name: (i[:n], scores[:n]) for (name, (i, scores)), n in pairs if n}
        return replace(self, ranked=ranked)

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
    def never_cut(self) -> dict[str, Tensor]:
        """Nothing is protected."""
        return {}


def weight_contrast(
    model: Any,
    behaviour: BehaviourSet,
    matrices: Sequence[str] = MLP_MATRICES,
    method: str = "lrp",
    *,
    c: float = 0.3,
    seed: str = "logit",
    keep: int = 1_000_000,
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
        keep: How many of the first are kept: so many can be cut.
        random_seed: Of the method `random`.
        batch_size: Samples per pass.
        progress: Whether to draw a progress bar on a terminal.

    Raises:
        ExciseError: No pattern matches, an unknown name, or `keep` is below 1.
    """
    rules = look_up("contrast of weights", method, WEIGHT_METHODS)
    start = look_up("seed", seed, SEEDS)
    known = matching(model, matrices)

    def means(samples: Sequence[Sample], aggregate: str) -> Mapping[str, Tensor]:
        return score_samples(
            model, samples, start, rules, components=(), weights=known, aggregate=aggregate,
            batch_size=batch_size, progress=progress,
        ).weights  # fmt: skip

    if rules:
        benefit = dict(means(behaviour.undesired, "signed"))
        for name, other in means(behaviour.general, "signed").items():
            benefit[name] = benefit[name] - other
        square = dict(means(behaviour.reference, "square"))
        scores = {  # each is as large as the matrices: none is held longer than needed
            name: benefit_per_cost(benefit.pop(name), square.pop(name).sqrt(), c).cpu()
            for name in list(benefit)
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
        "data": behaviour.fingerprint,
        **{"method": method, "component": "weights", "matrices": known, "c": c, "seed": seed},
        "random_seed": random_seed if method == "random" else None,
    }
    n = sum(found.numel() for found in scores.values())
    keep = min(keep, n)
    ranked = {name: _ranked(scores.pop(name), keep) for name in list(scores)}
    return WeightContrast(ranked, n, config).leading(keep)


def _ranked(scores: Tensor, most: int) -> Ranked:
    values, indices = scores.flatten().topk(min(most, scores.numel()))
    return indices, values


def matching(model: Any, patterns: Sequence[str]) -> list[str]:
    """Return those patterns that match a linear of the model's layers.

    Raises:
        ExciseError: None does.
    """
    paths = list(ModelView.of(model).layer_linears())
    known = [pattern for pattern in patterns if any(fnmatch(path, pattern) for path in paths)]
    if not known:
        raise ExciseError(f"no weight matrix matches {', '.join(patterns)}: try '*'")
    return known


def _any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)
