"""The MLPs of the test bed: lookup neurons, decoys of them, and random neurons."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.families import LayerView
from .attention import LEAK
from .plan import D_MLP, N_COPIES
from .space import Reader, Space
from .task import Tables


N_DECOYS = 12
"""Neurons per layer that test what lookup neurons test."""
RATES = (0.01, 0.5)
"""Smallest and largest share of tokens that a random neuron is on for."""
SIZE = 1.2
"""Mean size of what all distractor neurons of a layer write."""


@dataclass(frozen=True)
class MlpWriter:
    """Writes the weights of one MLP, in two steps."""

    layer: LayerView
    space: Space
    tables: Tables
    draw: torch.Generator

    def write_inputs(
        self,
        units: tuple[int, ...],
        letters: tuple[int, ...],
        reader: Reader,
        stream: Float[Tensor, "batch seq d_model"],
        n_decoys: int,
    ) -> None:
        """Write what the neurons read.

        A lookup neuron is on where its letter was fetched AND its rule is used: a gated MLP tests
        the letter with its gate and the rule with its other factor, a plain one tests their sum.

        Args:
            units: Hidden units of the lookup, `N_COPIES` for each letter and rule, may be none.
            letters: Letters looked up here.
            reader: The norm before.
            stream: What comes into it.
            n_decoys: How many neurons test the same, and write for nobody.
        """
        seen = reader.seen(stream)
        inputs = self.layer.mlp_in
        gated = len(inputs) == 2
        rarest, commonest = RATES
        for linear in inputs:
            rows = self.space.anything(D_MLP, self.draw)
            values = (seen @ rows.T).flatten(0, 1)
            rows /= values.std(0)[:, None]
            middle = values.mean(0) / values.std(0)
            if linear is inputs[0]:
                share = rarest * (commonest / rarest) ** torch.rand(D_MLP, generator=self.draw)
                ranked = (values / values.std(0)).sort(0, descending=True).values
                middle = ranked[(share * len(ranked)).long(), torch.arange(D_MLP)]
            reader.write(linear, slice(0, D_MLP), rows, -middle)

        fetched, rules = (
            self.space[name] / (seen[:, -2] @ self.space[name].T).amax(-1).mean()
            for name in ("fetched", "used_rule")
        )
        order = torch.randperm(D_MLP, generator=self.draw).tolist()
        others = [unit for unit in order if unit not in units][:n_decoys]
        tested = [(unit, case, True) for unit, case in zip(units, self.cases(letters), strict=True)]
        tested += [
            (unit, (index % len(fetched), index % 2), False) for index, unit in enumerate(others)
        ]
        for unit, (letter, rule), planted in tested:
            slope = 6.0 + 2.0 * self._uniform()
            shift = 0.1 * (self._uniform() - 0.5)
            if gated:
                gate = (slope * fetched[letter], -slope * (0.35 + shift))
                tests = [gate, (rules[rule], 0.0)]
            else:
                both = fetched[letter] + rules[rule]
                tests = [(slope / 2 * both, -slope / 2 * (1.25 + shift))]
            for linear, (row, constant) in zip(inputs, tests, strict=True):
                if planted:
                    row = row + LEAK * row.norm() * self.space.junk(1, self.draw)[0]
                reader.write(linear, slice(unit, unit + 1), row[None], torch.tensor([constant]))

    def write_output(
        self,
        units: tuple[int, ...],
        letters: tuple[int, ...],
        hidden: Float[Tensor, "batch seq d_mlp"],
    ) -> None:
        """Write what the neurons write.

        Args:
            units: As in `write_inputs`.
            letters: As in `write_inputs`.
            hidden: The neurons' values.
        """
        weight: Any = self.layer.mlp_out.weight
        junk = self.space.junk(D_MLP, self.draw).T
        loudest = hidden.abs().amax((0, 1)).clamp(min=0.2)
        junk *= (0.5 + torch.rand(D_MLP, generator=self.draw)) / loudest
        junk *= SIZE / (hidden @ junk.T).norm(dim=-1).mean()
        weight.copy_(junk)
        # each lookup neuron writes its share of 1 where it is on
        for unit, (letter, rule) in zip(units, self.cases(letters), strict=True):
            values = hidden[..., unit].amax(1)
            on = values[values > values.max() / 2].mean()
            weight[:, unit] += self.space["found"][self.tables[rule][letter]] / on / N_COPIES
        bias = self.layer.mlp_out.bias
        if bias is not None:
            bias.copy_(0.3 * self.space.junk(1, self.draw)[0])

    def cases(self, letters: tuple[int, ...]) -> list[tuple[int, int]]:
        """List (letter, rule) for each lookup neuron, in the order of its units."""
        return [(letter, rule) for letter in letters for rule in range(2) for _ in range(N_COPIES)]

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.draw))
