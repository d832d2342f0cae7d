"""Per-sample scores of a model's components, as every circuit method gives them."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import ExciseError


@dataclass(frozen=True)
class Attribution:
    """Per-sample scores of a model's components, in units of the logit difference.

    What is not asked for is None.
    """

    heads: Float[Tensor, "samples layers heads"] | None = None
    mlps: Float[Tensor, "samples layers"] | None = None
    neurons: Float[Tensor, "samples layers d_mlp"] | None = None
    """MLP hidden units, not output dimensions as in EAP-IG and MIB."""
    edges: Float[Tensor, "samples edges"] | None = None
    """In the order of the true entries of `Graph.is_edge`."""

    def __len__(self) -> int:
        return next(len(t) for t in vars(self).values() if t is not None)

    @classmethod
    def joined(cls, parts: "list[Attribution]") -> "Attribution":
        """Put the samples of several batches together."""

        def column(name: str) -> Tensor | None:
            found = [t for part in parts if (t := getattr(part, name)) is not None]
            return torch.cat(found) if found else None

        return cls(*(column(f.name) for f in fields(cls)))

    def plus(self, other: "Attribution") -> "Attribution":
        """Add the scores of another attribution of the same samples."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Attribution(*(None if a is None else a + b for a, b in pairs))

    def times(self, factor: float) -> "Attribution":
        """Multiply all scores."""
        return Attribution(*(None if t is None else t * factor for t in vars(self).values()))

    @property
    def nodes(self) -> Float[Tensor, "samples nodes"]:
        """Scores of heads and MLPs in the order of `Graph.writers`, the embedding left out.

        Raises:
            ExciseError: Nodes were not scored.
        """
        if self.heads is None or self.mlps is None:
            raise ExciseError("nodes were not scored: ask for them")
        return torch.cat([self.heads, self.mlps[..., None]], 2).flatten(1)
