"""The relevance of a model's components for one reference set: a frozen value, kept as a folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import ExciseError
from ..core.files.artefact import damage, read_artefact, write_artefact
from ..core.files.escape import markdown
from ..core.files.schema import TEXT, Array, check_tensors, whole
from ..core.identity import model_hash
from ..core.provenance import Seen
from ..core.statistics import LEVEL, mean_interval


CONFIG = {
    **dict.fromkeys(
        ("model", "model_hash", "dtype", "method", "target", "aggregate", "data"), TEXT
    ),
    "n_samples": whole(1),
    **dict.fromkeys(("n_layers?", "n_heads?", "n_kv_heads", "d_mlp?"), whole(1)),
}
"""What a relevance folder's config has to say."""

TENSORS = {
    "heads?": Array("float", "n_layers n_heads"),
    "neurons?": Array("float", "n_layers d_mlp"),
    "tokens?": Array("float", "samples seq"),
    "token_ids?": Array("int", "samples seq", -1, 2**31 - 1),
    "weights/*": Array("float", "_ _"),
    "samples/heads?": Array("float", "kept n_layers n_heads"),
    "samples/neurons?": Array("float", "kept n_layers d_mlp"),
}
"""And its tensors."""


@dataclass(frozen=True)
class Relevance:
    """Scores of heads, neurons, tokens and weights: means over samples.

    A sample's value of a component is, by `config["aggregate"]`, the sum over tokens of its
    relevance (`signed`), the size of that sum (`abs`), or the sum over tokens of its squared
    relevance (`square`). Relevance is in units of the target (logits, nats).
    """

    config: dict[str, Any]
    """Recipe: model id and hash, method, target, aggregate, number and fingerprint of samples."""
    heads: Float[Tensor, "layers heads"] | None = None
    neurons: Float[Tensor, "layers d_mlp"] | None = None
    """Hidden units of each MLP."""
    tokens: Float[Tensor, "samples seq"] | None = None
    """Signed relevance of each input token; 0 in the padding."""
    token_ids: Int[Tensor, "samples seq"] | None = None
    """-1 in the padding."""
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """By parameter name, in the shape of the parameter."""
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-sample values of `heads` and `neurons`: (samples, layers, units)."""

    def __str__(self) -> str:
        parts = [
            f"{name} {tuple(tensor.shape)}"
            for name, tensor in self._tensors().items()
            if not name.startswith(("samples/", "weights/", "token_ids"))
        ]
        if self.weights:
            n = sum(weight.numel() for weight in self.weights.values())
            parts.append(f"{n:,} weights in {len(self.weights)} matrices")
        recipe = " ".join(str(self.config[key]) for key in ("method", "aggregate", "target"))
        return f"Relevance({recipe}, {self.config['n_samples']} samples: {', '.join(parts)})"

    @property
    def seen(self) -> Seen:
        """What is known of the texts it was scored on."""
        return Seen.read(self.config, f"the relevance of {self.config.get('model', 'a model')}")

    def get(self, component: str) -> Tensor:
        """Return the scores of `heads`, `neurons`, `kv_groups` or `tokens`.

        Raises:
            ExciseError: This relevance holds no such scores.
        """
        scores = getattr(self, component, None)
        if not isinstance(scores, Tensor):
            asked = "heads" if component == "kv_groups" else component
            raise ExciseError(
                f"this relevance holds no {component}: score again with --components {asked}, by a "
                "method that scores them"
            )
        return scores

    @property
    def kv_groups(self) -> Float[Tensor, "layers groups"] | None:
        """Scores of key-value groups: the sum of the heads that share keys and values."""
        if self.heads is None:
            return None
        return self.heads.unflatten(1, (self.config["n_kv_heads"], -1)).sum(-1)

    def interval(self, component: str, level: float = LEVEL) -> tuple[Tensor, Tensor]:
        """Return confidence bounds of the mean, from per-sample values: Student's.

        Args:
            component: `heads` or `neurons`.
            level: Of confidence.

        Returns:
            Lower and upper bounds, each (layers, units).

        Raises:
            ExciseError: Fewer than two samples, or per-sample values were not kept.
        """
        values = self.samples.get(component)
        found = None if values is None else mean_interval(values, level)
        if found is None:
            raise ExciseError(
                f"bounds of {component} need the values of at least two samples: score with more "
                "samples, and keep them"
            )
        return found

    def top(self, component: str, k: int, by: str = "abs") -> list[tuple[int, int, float]]:
        """Return the k highest components as (layer, unit, score).

        Args:
            component: `heads`, `neurons` or `kv_groups`.
            k: How many.
            by: `abs` or `signed`.
        """
        scores = self.get(component)
        flat = (scores.abs() if by == "abs" else scores).flatten()
        width = scores.shape[1]
        order = flat.topk(min(k, len(flat))).indices.tolist()
        return [(i // width, i % width, scores.flatten()[i].item()) for i in order]

    def rank_correlation(self, other: "Relevance", component: str) -> float:
        """Return Spearman's rank correlation of a component's scores with another relevance.

        Args:
            other: Of a model of the same shape: another precision, method or reference set.
            component: `heads`, `neurons` or `kv_groups`.

        Raises:
            ExciseError: One of the two holds no such scores, or the shapes differ.
        """
        ours, theirs = self.get(component), other.get(component)
        if ours.shape != theirs.shape:
            raise ExciseError(
                f"{component} are {tuple(ours.shape)} here and {tuple(theirs.shape)} there: "
                "compare relevance of models of one shape"
            )
        ranks = torch.stack([_ranks(ours.flatten()), _ranks(theirs.flatten())])
        return torch.corrcoef(ranks)[0, 1].item()

    def check_model(self, model: Any) -> None:
        """Refuse to be used on a model that was not the one scored.

        Raises:
            ExciseError: The hash of its weights differs.
        """
        if model_hash(model) != self.config["model_hash"]:
            raise ExciseError(
                f"this relevance is of {self.config['model']} ({self.config['dtype']}, hash "
                f"{self.config['model_hash'][:8]}), and the model's weights differ, be it in "
                "precision: score this model, or load that one with --dtype "
                f"{self.config['dtype']}"
            )

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the folder: `config.json`, `relevance.safetensors`, `README.md`."""
        readme = (
            f"# Relevance of {markdown(self.config['model'])}\n\n{markdown(self)}\n\n"
            f"Made by excise. Look at it with `excise show {markdown(Path(path).name)}`.\n"
        )
        write_artefact(path, "relevance", self.config, self._tensors(), readme, overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Relevance":
        """Read such a folder.

        Raises:
            ExciseError: Missing, damaged or of another kind; or it holds NaN.
        """
        config, tensors = read_artefact(path, "relevance", CONFIG)
        with damage(path):
            known = {name: config.get(name) for name in ("n_layers", "n_heads", "d_mlp")}
            sizes = check_tensors(tensors, TENSORS, known)
            heads, groups = sizes.get("n_heads"), config["n_kv_heads"]
            if heads is not None and heads % groups:
                raise ExciseError(f"its {heads} heads cannot share {groups} keys and values")

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

        single = {k: tensors.get(k) for k in ("heads", "neurons", "tokens", "token_ids")}
        return cls(config, **single, weights=group("weights/"), samples=group("samples/"))

    def _tensors(self) -> dict[str, Tensor]:
        single = {k: getattr(self, k) for k in ("heads", "neurons", "tokens", "token_ids")}
        found = {name: tensor for name, tensor in single.items() if tensor is not None}
        found.update({f"weights/{name}": weight for name, weight in self.weights.items()})
        found.update({f"samples/{name}": values for name, values in self.samples.items()})
        return found


def _ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ranks from 0, ties sharing their mean rank."""
    _, group, size = values.unique(return_inverse=True, return_counts=True)
    return (size.cumsum(0) - (size + 1) / 2).double()[group]
