"""Random models in float64 with paired prompts of unequal lengths."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from excise.circuits.pairs import Pairs
from excise.core.data import Sample


EDGE_KINDS = ("llama-mha", "llama-gqa", "llama-bias", "qwen3", "gemma3", "opt", "opt-350m")


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Pairs]:
    """Return `make_pairs(lengths, seed)`: random tokens, answer 7, wrong answer 9."""

    def make(lengths: tuple[int, ...] = (5, 8, 6), seed: int = 0) -> Pairs:
        draw = random.Random(seed)

        def sample(n: int) -> Sample:
            return Sample(tuple(draw.randrange(10, 150) for _ in range(n)), answer=7, wrong=9)

        return Pairs(tuple(map(sample, lengths)), tuple(map(sample, lengths)))

    return make


@pytest.fixture(scope="session")
def doubled(tiny: Callable[..., Any]) -> Callable[[str], Any]:
    """Return `doubled(kind)`, a new random model in float64."""
    return lambda kind: tiny(kind).double()
