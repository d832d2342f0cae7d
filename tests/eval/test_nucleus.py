"""The nucleus of nucleus sampling, against its definition."""

from collections.abc import Sequence

import torch
from excise.core.generation import nucleus
from hypothesis import assume, given, settings
from hypothesis import strategies as st


def slow_nucleus(logits: Sequence[float], top_p: float) -> list[bool]:
    """Say which tokens are in it: as few as suffice, and those as likely as the last of them."""
    chances = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    mass, last = 0.0, 1.0
    for chance in sorted(chances, reverse=True):
        if mass >= top_p:
            break
        mass, last = mass + chance, chance
        assume(abs(mass - top_p) > 1e-5)  # else rounding decides
    return [chance >= last for chance in chances]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(-12, 12), min_size=width, max_size=width), min_size=1, max_size=4
        )
    ),
    st.floats(0.01, 0.999),
)
def test_nucleus_equals_its_definition(rows: list[list[int]], top_p: float):
    logits = torch.tensor(rows) / 4.0  # few values: there are ties
    expected = [slow_nucleus(row, top_p) for row in logits.tolist()]
    for head in (1, 3, 512):
        found = nucleus(logits, top_p, head)
        assert found.isfinite().tolist() == expected
        assert torch.equal(found[found.isfinite()], logits[found.isfinite()])
        assert bool((found[~found.isfinite()] == -torch.inf).all())


def test_nucleus_of_large_vocabularies():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 5000, generator=draw)
    flat, peaked = 0.1 * noise, 4 * noise
    for logits in (flat, peaked, torch.cat([flat[:1], peaked[1:]])):
        found = nucleus(logits, 0.9)
        assert torch.equal(found, nucleus(logits, 0.9, head=5000))
        assert torch.equal(found, torch.cat([nucleus(row[None], 0.9) for row in logits]))
        kept = found.isfinite().sum(1)
        mass = logits.softmax(1).where(found.isfinite(), torch.zeros(())).sum(1)
        assert bool((mass >= 0.9 - 1e-5).all())
        assert bool((kept < 5000).all())
    assert int(nucleus(flat, 0.9).isfinite().sum(1).min()) > 512  # more than the head
    assert torch.equal(nucleus(flat, 1.0), flat)
