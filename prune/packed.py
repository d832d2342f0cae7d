"""Masks with a bit per weight: as bytes they would be as large as half a bfloat16 model."""

import math
from collections.abc import Iterator, MutableMapping

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


class PackedMasks(MutableMapping[str, Tensor]):
    """Boolean tensors by name, each kept as bits and unpacked on the CPU when it is asked for.

    What is given out is a copy: to change a mask, set it.
    """

    def __init__(self) -> None:
        self._bits: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}

    def __setitem__(self, name: str, mask: Bool[Tensor, "..."]) -> None:
        self._bits[name], self._shapes[name] = packed(mask), mask.shape

    def __getitem__(self, name: str) -> Bool[Tensor, "..."]:
        return unpacked(self._bits[name], self._shapes[name])

    def __delitem__(self, name: str) -> None:
        del self._bits[name], self._shapes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


def packed(mask: Bool[Tensor, "..."]) -> Tensor:
    """Return a boolean tensor as bytes of eight, (ceil(n / 8),), uint8 on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
    """Return what `packed` was given, by its shape."""
    count = math.prod(shape)
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool)).view(shape)
