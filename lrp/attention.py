"""Attention under a relevance rule, through transformers' own attention interface.

Two names are registered once, `excise_sdpa` and `excise_eager`. Each runs the original kernel; if
the calling module is inside a scope, its rule runs the kernel. Lookup is by module, so that a
second model which shares the config object of a scoped one computes as ever.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..core.errors import ExciseError
from .rules import Fire, ShareRule


@dataclass(frozen=True)
class AttentionRule:
    """How one attention module shares relevance.

    Both products of attention, `A V` inside of which `A = softmax(Q K)`, give half to each factor
    (AttnLRP, arXiv 2402.05602, Prop. 3.3): v keeps 1/2, and of the other half q and k get 1/2
    each, 1/4 of the gradient. With `constant_pattern` (CP-LRP) q and k get nothing and v all.
    """

    constant_pattern: bool
    fire: Fire

    def attend(
        self, kernel: Any, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *args: Any,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Run the kernel with the rule on queries, keys and values (batch, heads, seq, size)."""
        if self.constant_pattern:
            q, k, v = q.detach(), k.detach(), ShareRule.apply(v, 1.0, self.fire)
        else:
            q, k = (ShareRule.apply(x, 0.25, self.fire) for x in (q, k))
            v = ShareRule.apply(v, 0.5, self.fire)
        return kernel(module, q, k, v, *args, **options)


class AttendsByRule(Protocol):
    """What runs the kernel for an attention module inside a scope."""

    def attend(self, kernel: Any, module: nn.Module, *args: Any, **options: Any) -> Any:
        """Return what the kernel does."""
        ...


ACTIVE: "WeakKeyDictionary[nn.Module, AttendsByRule]" = WeakKeyDictionary()
"""The rule of each attention module that is inside a scope now."""

_PREFIX = "excise_"
KERNELS = ("sdpa", "eager")


def scoped_name(implementation: str) -> str:
    """Return the name of the interface that adds rules to an attention implementation.

    Raises:
        ExciseError: The implementation is neither `sdpa` nor `eager`.
    """
    plain = implementation.removeprefix(_PREFIX)
    if plain not in KERNELS:
        raise ExciseError(
            f"attention implementation {implementation!r} has no relevance rule: "
            "load the model with attn_implementation='sdpa' (or 'eager')"
        )
    return _PREFIX + plain


_SCOPED: dict[int, tuple[str, int]] = {}
"""Of each config in a scope, by its id: the implementation before, and how many scopes are open.
Models may share one."""


@contextmanager
def scoped_attention(model: Any) -> Iterator[None]:
    """Have a model's attention ask for rules, for a while.

    Raises:
        ExciseError: As `scoped_name`.
    """
    key = id(model.config)
    before, n = _SCOPED.get(key, (model.config._attn_implementation, 0))
    name = scoped_name(before)
    _SCOPED[key] = before, n + 1
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        n = _SCOPED[key][1] - 1
        if n:
            _SCOPED[key] = before, n
        else:
            del _SCOPED[key]
            model.set_attn_implementation(before)


def _forward_for(kernel: str) -> Callable[..., Any]:
    def forward(module: nn.Module, *args: Any, **options: Any):
        if kernel == "eager":
            original = sys.modules[type(module).__module__].eager_attention_forward
        else:
            original = ALL_ATTENTION_FUNCTIONS[kernel]
        rule = ACTIVE.get(module)
        attend = original if rule is None else partial(rule.attend, original)
        return attend(module, *args, **options)

    return forward


for _kernel in KERNELS:
    AttentionInterface.register(_PREFIX + _kernel, _forward_for(_kernel))
    AttentionMaskInterface.register(_PREFIX + _kernel, ALL_MASK_ATTENTION_FUNCTIONS[_kernel])
