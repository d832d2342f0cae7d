"""Tiny models with a circuit planted by construction, to grade circuit discovery on.

    >>> from excise.circuits.testbed.planted import planted
    >>> bed = planted("chain", "opt")
    >>> sorted(bed.mlps), len(bed.heads), len(bed.neurons), len(bed.edges)
    ([2, 4], 6, 24, 20)

The task (`testbed_task`) is to look up a letter's answer: `>1 c ... >2 f ... rule2 ... ask1 =`.
A *flag* head looks at the token before and marks letters behind `>1` or `>2`; two *fetch* heads
bring the asked letter to the query, half of it each, a *rule* head brings the rule; *lookup*
neurons of two MLPs fire where a letter AND a rule are there, and write what the table holds;
*answer* heads bring that to the last position.

**What is true.** A head, MLP or neuron is in the circuit if giving it the activation of the
counterfactual prompt changes the logit difference, all else left clean (resample ablation); an edge
if it carries what the prompts differ in, by construction: a letter, a marker, the query or the rule
on its way to the logits, in values, or in queries and keys where it decides what is attended to.
Attention to a fixed place, as of the flag, rule and answer heads, has no query or key edge, though
zero ablation would find one. The tests measure all this by exact patching.

A *backup* head acts only where the answer that is already there differs from the one that was
found. It is in `backups` alone: patched by itself it changes little; its edges are in nobody's
list, and `grading.grade` counts neither it nor them, for or against. The *negative* head looks for
the answer that is already there and takes part of it away (as copy suppression does).

**What is hard.** Everything else is as active as the circuit. Distractor heads attend sharply,
diffusely, to the token before or to BOS, and carry letters, flags and answers into a part of the
stream that only other distractors read; some are exact copies of planted heads, and some neurons of
lookup neurons, but for where they write. In Llama a planted head shares its keys and values with a
distractor. Planted heads and neurons write side effects into the same junk. Planted readers and the
logits read a little of it, so that no score is exactly zero. Attention is about .9, not 1; neurons
are silent for most prompts; the norms' scale varies with the prompt; each change concerns a quarter
of the pairs. Layers, heads, neurons and the rotation of the stream are drawn by seed.
"""

import random
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from ...core.data import Sample, collate
from ...core.errors import ExciseError, look_up
from ...core.families import ModelView
from ..graph import Edge
from .build import BLANKS, build
from .plan import draw_plan
from .task import draw_pairs, draw_tables


CIRCUITS: dict[str, str] = {
    "chain": "flag, fetch and rule heads, lookup neurons of two MLPs, two answer heads",
    "backup": "one answer head, and a later head that acts where its answer is missing",
    "negative": "one answer head, and a later head that takes part of its answer away",
}
"""What can be planted, in one line each."""


@dataclass(frozen=True)
class Planted:
    """A model, prompts that it solves, and the circuit by which it does."""

    model: Any
    """A stock `LlamaForCausalLM` or `OPTForCausalLM`, float32, eval mode."""
    name: str
    """The circuit, a key of `CIRCUITS`."""
    family: str
    """`llama` or `opt`."""
    clean: list[Sample]
    """Prompts of equal length, with the right `answer` and the counterfactual's as `wrong`."""
    counterfactual: list[Sample]
    """The same prompts with one deciding token (or the two markers) changed, and the same
    `answer` and `wrong`: here the logit difference is negative."""
    heads: frozenset[tuple[int, int]]
    """(layer, head) of the circuit; no backups."""
    mlps: frozenset[int]
    """Layers of its MLPs."""
    neurons: frozenset[tuple[int, int]]
    """(layer, hidden unit)."""
    edges: frozenset[Edge]
    """Edges of `circuits.graph`; none of a backup."""
    backups: frozenset[tuple[int, int]]
    """Heads that act only where an answer head does not."""
    negatives: frozenset[tuple[int, int]]
    """Heads that write against the answer; part of `heads`, too."""


def planted(circuit: str = "chain", family: str = "llama", seed: int = 0, n: int = 64) -> Planted:
    """Build a model with a planted circuit, in about half a second.

    Args:
        circuit: A key of `CIRCUITS`.
        family: "llama" (grouped heads, RoPE, gated MLP, no biases) or "opt" (learned positions,
            ReLU, biases).
        seed: Draws all places, weights and prompts; equal seeds give equal models.
        n: How many pairs; the first ones do not depend on it. From 48 on, all neurons are met.

    Raises:
        ExciseError: Unknown circuit or family, or `n` below 1.
    """
    look_up("circuit", circuit, CIRCUITS)
    look_up("family", family, BLANKS)
    if n < 1:
        raise ExciseError(f"asked for {n} prompts: give at least 1")
    draw = random.Random(f"{circuit} {family} {seed}")
    tables = draw_tables(draw)
    plan = draw_plan(circuit, draw)
    generator = torch.Generator().manual_seed(draw.getrandbits(60))
    known = [clean for clean, _ in islice(draw_pairs(tables, draw), 48)]
    model = build(family, plan, tables, collate(known).input_ids, generator)

    pairs: list[tuple[Sample, Sample]] = []
    source = draw_pairs(tables, draw)
    while len(pairs) < n:
        pairs += _solved(model, list(islice(source, 64)))
    return Planted(
        model=model,
        name=circuit,
        family=family,
        clean=[clean for clean, _ in pairs[:n]],
        counterfactual=[other for _, other in pairs[:n]],
        heads=plan.heads,
        mlps=frozenset(plan.lookup),
        neurons=plan.neurons,
        edges=plan.edges(ModelView.of(model).n_kv_heads),
        backups=frozenset([plan.backup] if plan.backup else []),
        negatives=frozenset([plan.suppress] if plan.suppress else []),
    )


@torch.no_grad()
def _solved(model: Any, pairs: list[tuple[Sample, Sample]]) -> list[tuple[Sample, Sample]]:
    """Keep the pairs of which the model solves both; about one in two thousand fails."""
    right = torch.ones(len(pairs), dtype=torch.bool)
    for which, samples in enumerate(zip(*pairs, strict=True)):
        batch = collate(samples)
        said = model(input_ids=batch.input_ids, use_cache=False).logits[:, -1].argmax(-1)
        right &= said == (batch.answers, batch.wrongs)[which]
    return [pair for pair, kept in zip(pairs, right.tolist(), strict=True) if kept]
