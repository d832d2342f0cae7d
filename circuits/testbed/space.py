"""The residual stream of the test bed: named orthogonal subspaces in a random rotation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .task import (
    ANSWERS,
    BOS,
    EQUALS,
    FILLERS,
    LENGTH,
    LETTERS,
    MARKERS,
    N_FILLERS,
    N_LETTERS,
    QUERIES,
    RULES,
    VOCABULARY,
)


D_MODEL = 96
ONE = 3.0
"""Size of the direction that all tokens share; it keeps the norms' scale nearly constant."""
FREQUENCIES = (2.2, 1.1, 0.5)
"""Radians per token of the learned positions."""

NAMED = {
    # what the embedding writes
    "one": 1, "bos": 1, "equals": 1, "filler": N_FILLERS, "letter": N_LETTERS,
    "marker": 2, "query": 2, "rule": 2, "position": 2 * len(FREQUENCIES),
    # what the circuit writes
    "flag": 2, "used_rule": 2, "fetched": N_LETTERS, "found": N_LETTERS, "answer": N_LETTERS,
}  # fmt: skip


@dataclass(frozen=True)
class Space:
    """Orthonormal rows for each name of `NAMED`, and for `junk`, which is all the rest.

    All are orthogonal to the vector of ones, so that LayerNorm's mean takes nothing away.
    """

    rows: dict[str, Float[Tensor, "k d_model"]]

    def __getitem__(self, name: str) -> Float[Tensor, "k d_model"]:
        return self.rows[name]

    @property
    def unit(self) -> Float[Tensor, "1 d_model"]:
        """The vector that reads a 1 from any token."""
        return self["one"] / ONE

    def anything(self, n: int, draw: torch.Generator) -> Float[Tensor, "n d_model"]:
        """Draw unit vectors that read from everywhere but the shared direction."""
        found = torch.randn(n, D_MODEL, generator=draw)
        found -= found.mean(1, keepdim=True)
        found -= found @ self["one"].T @ self["one"]
        return found / found.norm(dim=1, keepdim=True)

    def junk(self, n: int, draw: torch.Generator) -> Float[Tensor, "n d_model"]:
        """Draw unit vectors in the part of the stream that no circuit uses."""
        mix = torch.randn(n, len(self["junk"]), generator=draw)
        return mix / mix.norm(dim=1, keepdim=True) @ self["junk"]

    def embedding(self) -> Float[Tensor, "vocabulary d_model"]:
        """Return the token embeddings; answers never occur in a prompt, and are junk-free, too."""
        found = self["one"].repeat(VOCABULARY, 1) * ONE
        parts: list[tuple[Sequence[int], str]] = [
            ((BOS,), "bos"), ((EQUALS,), "equals"), (FILLERS, "filler"), (LETTERS, "letter"),
            (MARKERS, "marker"), (QUERIES, "query"), (RULES, "rule"), (ANSWERS, "answer"),
        ]  # fmt: skip
        for tokens, name in parts:
            found[list(tokens)] += self[name]
        return found

    def positions(self) -> Float[Tensor, "length d_model"]:
        """Return learned positions: points on circles, one for each frequency."""
        angles = torch.arange(LENGTH)[:, None] * torch.tensor(FREQUENCIES)
        return torch.cat([angles.cos(), angles.sin()], 1) @ self["position"]

    def before(self) -> tuple[Float[Tensor, "k d_model"], Float[Tensor, "k d_model"]]:
        """Return (query, key) features whose products are largest one position back."""
        cos, sin = self["position"].chunk(2)
        turn = torch.tensor(FREQUENCIES)
        c, s = turn.cos()[:, None], turn.sin()[:, None]
        return torch.cat([c * cos + s * sin, c * sin - s * cos]), self["position"]


def draw_space(draw: torch.Generator) -> Space:
    """Draw the rotation."""
    start = torch.randn(D_MODEL, D_MODEL, generator=draw, dtype=torch.float64)
    start[:, 0] = 1
    basis = torch.linalg.qr(start).Q.T[1:].float()
    named = basis.split([*NAMED.values(), len(basis) - sum(NAMED.values())])
    return Space(dict(zip([*NAMED, "junk"], named, strict=True)))


@dataclass(frozen=True)
class Reader:
    """Writes weights that read the stream through a norm.

    Weights are given as if they read the stream itself; the norm's gain, its shift and its mean
    scale on the test bed's prompts are folded in.
    """

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    scale: float
    unit: Float[Tensor, "1 d_model"]

    def write(
        self,
        linear: Any,
        rows: slice,
        weights: Float[Tensor, "rows d_model"],
        constants: Float[Tensor, " rows"] | None = None,
    ) -> None:
        """Set rows of a linear layer.

        Args:
            linear: With a bias, constants go there; else they are read from the shared direction.
            rows: Which.
            weights: On the raw stream.
            constants: Added to what the weights read.
        """
        constants = torch.zeros(len(weights)) if constants is None else constants
        if linear.bias is None:
            weights = weights + constants[:, None] * self.unit
        weights = weights * self.scale / self.gain
        linear.weight[rows] = weights
        if linear.bias is not None:
            linear.bias[rows] = constants - weights @ self.shift

    def seen(self, stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Return the stream as the raw weights see it: normalised, back at its mean scale."""
        centred = stream - stream.mean(-1, keepdim=True)
        return centred / centred.square().mean(-1, keepdim=True).sqrt() * self.scale
