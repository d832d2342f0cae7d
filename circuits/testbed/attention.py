"""The attention of the test bed: weights of planted heads, and of distractors around them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.families import LayerView
from .plan import D_HEAD, N_HEADS
from .space import Reader, Space
from .wiring import SEEN, Rows, Wiring, random_wiring


LEAK = 0.05
"""How much of a circuit's reading is from the junk, relative to the rest."""
SIZES = (0.3, 0.9)
"""Smallest and largest mean size of what any head writes into the junk; where a planted head acts,
it writes about 1 besides."""
SHARPNESS = (0.5, 1.5, 3.0)
"""Standard deviations of a random head's scores over the positions that it can see."""

SLOW_FIRST = (5, 11, 4, 10, 3, 9, 2, 8, 7, 1, 6, 0)
"""Dimensions of a Llama head, those that RoPE turns most slowly first."""
TURNS = (1.0, 1e4 ** (-2 / D_HEAD))
"""Radians per token of its two fastest pairs, for Llama's usual base."""


@dataclass(frozen=True)
class AttentionWriter:
    """Writes the attention weights of one layer, in two steps.

    Every head writes into the junk; only planted ones write to their target besides.
    """

    layer: LayerView
    space: Space
    n_groups: int
    learned_positions: bool
    draw: torch.Generator

    def write_inputs(
        self,
        planted: dict[int, Wiring],
        copied: dict[int, Wiring],
        reader: Reader,
        stream: Float[Tensor, "batch seq d_model"],
    ) -> dict[int, Tensor]:
        """Write queries, keys and values.

        Args:
            planted: By head, those of the circuit.
            copied: By head, decoys; all other heads are random.
            reader: The norm before.
            stream: What comes into it.

        Returns:
            By planted head, the map from its values to what it writes, (d_model, d_head).
        """
        q_proj, k_proj = self.layer.query_key
        size = N_HEADS // self.n_groups
        seen = reader.seen(stream)
        outputs = {}
        for group in range(self.n_groups):
            heads = range(group * size, (group + 1) * size)
            chosen = [head for head in heads if head in planted or head in copied]
            owner = chosen[0] if chosen else heads[0]
            wiring = {**copied, **planted}.get(owner) or random_wiring(
                self.space, self.learned_positions, self.draw
            )
            query, key, spin = self._query_key(wiring, owner in planted)
            if wiring.at is not None:
                query = focused(query, key, seen, wiring.at)
            elif not chosen and len(wiring.query) == D_HEAD:  # by content
                query = self._sharpened(query, key, seen)
            reader.write(k_proj, _slice(group), spin @ key)
            for head in heads:
                rows = query
                if head != owner:
                    rows = self._sharpened(self.space.anything(D_HEAD, self.draw), key, seen)
                reader.write(q_proj, _slice(head), spin @ rows)
            outputs |= self._write_value(wiring, group, reader, owner if owner in planted else None)
        return outputs

    def write_output(self, outputs: dict[int, Tensor], mixed: Float[Tensor, "batch seq z"]) -> None:
        """Write the output projection.

        Args:
            outputs: From `write_inputs`.
            mixed: Values of all heads after attention.
        """
        weight: Any = self.layer.attention_out.weight
        for head in range(N_HEADS):
            values = mixed[..., _slice(head)]
            junk = self.space.junk(D_HEAD, self.draw).T
            size = SIZES[0] + (SIZES[1] - SIZES[0]) * float(torch.rand((), generator=self.draw))
            junk *= size / (values @ junk.T).norm(dim=-1).mean()
            weight[:, _slice(head)] = junk + outputs.get(head, 0)
        bias = self.layer.attention_out.bias
        if bias is not None:
            bias.copy_(0.3 * self.space.junk(1, self.draw)[0])

    def _query_key(self, wiring: Wiring, planted: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Lay the features out over a head's dimensions: queries, keys, and how to turn both."""
        query, key = torch.zeros(2, D_HEAD, self.space["one"].shape[1])
        key += self.space.anything(D_HEAD, self.draw)  # used by other heads of the group
        used = list(SLOW_FIRST[: len(wiring.query)])
        query[used], key[used] = wiring.query, wiring.key
        if wiring.before:
            used = [0, 6, 1, 7]
            unit = self.space.unit[0]
            for first, second, turn, strength in ((0, 6, TURNS[0], 7.0), (1, 7, TURNS[1], 5.0)):
                angle = torch.tensor(turn)
                query[first] = unit * angle.cos() * strength**0.5
                query[second] = -unit * angle.sin() * strength**0.5
                key[first], key[second] = unit * strength**0.5, 0 * unit
        if planted:
            query[used], key[used] = self._leaky(query[used]), self._leaky(key[used])
        scale = D_HEAD**0.25  # attention divides by the square root of the head's size
        spin = torch.eye(D_HEAD)
        if self.learned_positions:  # RoPE keeps to its dimensions
            spin = random_rotation(D_HEAD, self.draw)
        return query * scale, key * scale, spin

    def _write_value(
        self, wiring: Wiring, group: int, reader: Reader, planted: int | None
    ) -> dict[int, Tensor]:
        spin = random_rotation(D_HEAD, self.draw)
        source = self._leaky(wiring.source) if planted is not None else wiring.source
        n = len(source)
        rows = torch.cat([source, self.space.anything(D_HEAD - n, self.draw)])
        constants = 0.1 * torch.randn(D_HEAD, generator=self.draw)
        constants[:n] = 0
        reader.write(self.layer.value, _slice(group), spin @ rows, spin @ constants)
        return {} if planted is None else {planted: wiring.target.T @ spin[:, :n].T}

    def _leaky(self, rows: Rows) -> Rows:
        return rows + LEAK * rows.norm(dim=1, keepdim=True) * self.space.junk(len(rows), self.draw)

    def _sharpened(self, query: Rows, key: Rows, seen: Float[Tensor, "batch seq d"]) -> Rows:
        """Scale random queries so that their scores differ by one of `SHARPNESS`."""
        scores = seen[:, -4:] @ query.T @ key @ seen.mT / D_HEAD**0.5
        wanted = SHARPNESS[int(torch.randint(len(SHARPNESS), (), generator=self.draw))]
        return query * wanted / scores.std(-1).mean()


def focused(query: Rows, key: Rows, seen: Float[Tensor, "batch seq d_model"], at: int) -> Rows:
    """Scale queries so that the most attended position gets `SEEN`, on average over prompts."""
    scores = torch.einsum("bd,rd,re,bse->bs", seen[:, at], query, key, seen) / D_HEAD**0.5
    scores = scores[:, : scores.shape[1] + at + 1]
    low, high = 0.0, 8.0
    for _ in range(20):
        middle = (low + high) / 2
        most = float((scores * middle).softmax(-1).amax(-1).mean())
        low, high = (middle, high) if most < SEEN else (low, middle)
    return query * high


def random_rotation(n: int, draw: torch.Generator) -> Float[Tensor, "n n"]:
    """Draw an orthogonal matrix."""
    return torch.linalg.qr(torch.randn(n, n, generator=draw)).Q


def _slice(head: int) -> slice:
    return slice(head * D_HEAD, (head + 1) * D_HEAD)
