"""What the heads of the test bed do: planted ones, copies of them, and random ones."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .plan import D_HEAD, N_HEADS, N_LAYERS, Head, Plan
from .space import Space


Rows = Float[Tensor, "rows d_model"]

SEEN = 0.9
"""Attention that a planted head pays to the right position, on average."""


@dataclass(frozen=True)
class Wiring:
    """What one head does, on the raw stream."""

    query: Rows
    key: Rows
    """Attention scores are the sum over rows of query times key."""
    source: Rows
    target: Rows
    """What is read from row i of `source` is written to row i of `target`."""
    before: bool = False
    """Looks one token back by RoPE, and not by `query` and `key`."""
    at: int | None = None
    """Position whose attention is brought to `SEEN`; None leaves `query` and `key` as they are."""


def feature(query: Rows, key: Rows, strength: float) -> tuple[Rows, Rows]:
    """Scale rows so that unit inputs add `strength` to a score."""
    root = abs(strength) ** 0.5
    return query * root, key * root * (1 if strength > 0 else -1)


def wirings(plan: Plan, space: Space, learned_positions: bool) -> dict[Head, Wiring]:
    """Say what each planted head does.

    Args:
        plan: Where they are.
        space: What the stream holds.
        learned_positions: Whether the embedding writes positions; else RoPE tells them.
    """
    asks, rule = (space[name].sum(0, keepdim=True) for name in ("query", "rule"))
    query, key = feature(*space.before(), 2.0) if learned_positions else (asks[:0], asks[:0])
    flag = space["flag"] / SEEN
    found = {plan.flag: Wiring(query, key, space["marker"], flag, before=not learned_positions)}
    query, key = feature(asks, rule, 5.0)
    found[plan.rule] = Wiring(query, key, space["rule"], space["used_rule"] / SEEN, at=-2)
    for head in plan.fetch:
        query, key = feature(space["query"], space["flag"], 5.0)
        half = space["fetched"] * 0.5 / SEEN
        found[head] = Wiring(query, key, space["letter"], half, at=-2)
    total = 1.4 if plan.suppress else 1.0
    for head in plan.answer:
        query, key = feature(space["equals"], asks, 5.0)
        share = space["answer"] * total / len(plan.answer) / SEEN
        found[head] = Wiring(query, key, space["found"], share, at=-1)

    # both compare the answer that is already there with what was found, and else rest on BOS
    rest = feature(space["equals"], space["bos"], 3.0)
    if plan.backup:
        here = feature(space["equals"], asks, 5.2)
        differ = feature(space["answer"], space["found"], -7.0)
        query, key = (torch.cat(rows) for rows in zip(differ, here, rest, strict=True))
        found[plan.backup] = Wiring(query, key, space["found"], space["answer"] / SEEN)
    if plan.suppress:
        agree = feature(space["answer"], space["found"], 5.2 / total)
        query, key = (torch.cat(rows) for rows in zip(agree, rest, strict=True))
        found[plan.suppress] = Wiring(query, key, space["found"], -0.5 * space["answer"] / SEEN)
    return found


def decoys(
    plan: Plan, wired: dict[Head, Wiring], size: int, draw: torch.Generator
) -> dict[Head, Wiring]:
    """Copy planted heads into free groups of `size` heads, from their layer on.

    A decoy looks and reads like a planted head; its `target` is not written to.
    """
    taken = {(layer, head // size) for layer, head in wired}
    found = {}
    for head in [plan.rule, plan.fetch[0], plan.fetch[1], plan.answer[0]]:
        free = [
            (layer, group)
            for layer in range(head[0], N_LAYERS)
            for group in range(N_HEADS // size)
            if (layer, group) not in taken
        ]
        if not free:
            continue
        layer, group = free[int(torch.randint(len(free), (), generator=draw))]
        taken.add((layer, group))
        found[layer, group * size] = wired[head]
    return found


def random_wiring(space: Space, learned_positions: bool, draw: torch.Generator) -> Wiring:
    """Draw a distractor: half by content, the rest look back by one token or at BOS."""
    query, key, source, target = (space.anything(D_HEAD, draw) for _ in range(4))
    kind = int(torch.randint(4, (), generator=draw))
    if kind == 0 and learned_positions:
        query, key = feature(*space.before(), 2.0)
    elif kind == 1:
        query, key = feature(space.unit, space["bos"], 5.0)
    return Wiring(query, key, source, target, before=kind == 0 and not learned_positions)
