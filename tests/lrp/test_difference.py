"""Relevance of a difference: it adds up to it, and becomes the gradient where it is small."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.core.errors import ExciseError, RuleNotFiredError
from excise.lrp.attention import ACTIVE
from excise.lrp.difference import (
    DifferenceAttention,
    DifferenceScope,
    first_half,
    logarithmic_mean,
    secant_root,
    secant_slope,
    second_half,
)


KINDS = ("llama-gqa", "llama-bias", "qwen3", "gemma3", "opt", "opt-350m")
IDS = torch.tensor([[5, 17, 3, 29, 11, 8, 17], [4, 9, 31, 2, 6, 6, 12]])
OTHER = torch.tensor([[5, 44, 3, 29, 90, 8, 17], [7, 9, 31, 101, 6, 5, 12]])


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", ["silu", "gelu", "relu"])
def test_a_secant_is_exact_and_a_short_one_the_derivative(name: str):
    f = getattr(torch.nn.functional, name)
    x, other = rows(200), rows(200, seed=1)
    slope = secant_slope(f, x, other, smooth=name != "relu")
    torch.testing.assert_close(slope * (x - other), f(x) - f(other))
    at = x.clone().requires_grad_()
    f(at).sum().backward()
    assert at.grad is not None
    torch.testing.assert_close(secant_slope(f, x, x, smooth=name != "relu"), at.grad)
    if name != "relu":  # just inside and outside of where the derivative is taken
        for step in (3e-6, 1e-5):
            near = secant_slope(f, x, x + step, smooth=True)
            torch.testing.assert_close(near * step, f(x + step) - f(x), rtol=1e-8, atol=1e-14)


def test_the_logarithmic_mean_lies_between_and_knows_its_limits():
    p, q = (
        torch.tensor([0.5, 0.2, 1e-9, 0.3, 0.0, 0.0]),
        torch.tensor([0.1, 0.2, 0.9, 0.0, 0.4, 0.0]),
    )
    p, q = p.double(), q.double()
    found = logarithmic_mean(p.log(), q.log())
    wanted = (p[[0, 2]] - q[[0, 2]]) / (p[[0, 2]].log() - q[[0, 2]].log())
    torch.testing.assert_close(found[[0, 2]], wanted)
    assert found[1].item() == pytest.approx(0.2)
    assert found[3:].tolist() == [0.0, 0.0, 0.0]


def test_the_inverse_root_falls_with_the_mean_square():
    x, other = rows(5, 8), 3 * rows(5, 8, seed=1)
    mean, fall = secant_root(x, other, 1e-3)
    squares = [t.square().mean(-1, keepdim=True) for t in (x, other)]
    roots = [(s + 1e-3).rsqrt() for s in squares]
    torch.testing.assert_close(mean, (roots[0] + roots[1]) / 2)
    torch.testing.assert_close(-fall * (squares[0] - squares[1]), roots[0] - roots[1])


class Asked(torch.nn.Module):
    """An attention module, as far as kernels look at it."""

    num_key_value_groups = 2
    is_causal = True
    training = False


def kernel(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
    k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (k, v))
    scores = scaling * q @ k.transpose(-1, -2) + mask
    return (scores.softmax(-1) @ v).transpose(1, 2), None


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4)])
@pytest.mark.parametrize("boolean", [True, False])
def test_attention_shares_out_all_of_its_change(lengths: tuple[int, int], boolean: bool):
    """Of queries, keys and values of grouped heads, with padding, each in turn and all together."""
    q, k, v = both = [rows(4, n, 6, 5, seed=n).requires_grad_() for n in (4, 2, 2)]
    seen = torch.ones(6, 6, dtype=torch.bool).tril().expand(4, 1, 6, 6).clone()
    for row, length in zip((0, 1, 2, 3), (*lengths, *lengths), strict=True):
        seen[row, ..., length:] = False
    lowest = torch.finfo(torch.float64).min
    mask = torch.zeros(4, 1, 6, 6).double().masked_fill(~seen, lowest)
    fired = []
    rule = DifferenceAttention(lambda: fired.append(1))
    plain = kernel(Asked(), q, k, v, mask, 0.7)[0].detach()

    def attend(_module: Any, q: Any, k: Any, v: Any, _mask: Any, scaling: float) -> Any:
        return kernel(Asked(), q, k, v, mask, scaling)

    out, _ = rule.attend(attend, Asked(), q, k, v, seen if boolean else mask, scaling=0.7)
    assert torch.equal(out, plain)
    weight = rows(2, 6, 4, 5, seed=9)
    for row, length in enumerate(lengths):
        weight[row, length:] = 0.0
    (first_half(out) * weight).sum().backward()
    assert fired
    change = ((first_half(plain) - second_half(plain)) * weight).sum((1, 2, 3))
    shares = torch.zeros(2).double()
    for x in both:
        assert x.grad is not None
        shares += ((first_half(x) - second_half(x)) * first_half(x.grad)).sum((1, 2, 3)).detach()
        assert not second_half(x.grad).any()
    torch.testing.assert_close(shares, change)


def multipliers(
    model: Any, embedded: torch.Tensor, before: Callable[[], Any] = lambda: None
) -> Any:
    """Return the gradient of what is put in for embeddings, and the explained value of each row."""
    with DifferenceScope(model) as scope:
        before()
        at = embedded.clone().requires_grad_()
        values = model(inputs_embeds=at, use_cache=False).logits[:, -1, 3]
        values.sum().backward()
        assert at.grad is not None
        return at.grad, values.detach(), scope.audit().layers


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_change_is_shared_out(tiny: Callable[..., Any], kind: str, implementation: str):
    model = tiny(kind).double()
    model.set_attn_implementation(implementation)
    embedded = model.get_input_embeddings()(torch.cat([IDS, OTHER])).detach()
    with torch.no_grad():
        plain = model(inputs_embeds=embedded, use_cache=False).logits[:, -1, 3]
    grad, values, layers = multipliers(model, embedded)
    assert torch.equal(values, plain)
    shares = (first_half(embedded - embedded.roll(2, 0)) * first_half(grad)).sum((1, 2))
    change = first_half(values) - second_half(values)
    # transformers' norms and softmaxes compute in float32
    torch.testing.assert_close(shares, change, rtol=1e-5, atol=1e-5)
    if kind != "opt-350m":  # its stream is narrower outside
        assert layers == pytest.approx([change.sum().item()] * 3, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_multipliers_of_a_small_change_are_the_gradient(tiny: Callable[..., Any], kind: str):
    model = tiny(kind).double()
    embedded = model.get_input_embeddings()(IDS).detach()
    other = embedded + 1e-7 * rows(*embedded.shape)
    grad, _, _ = multipliers(model, torch.cat([embedded, other]))
    at = embedded.clone().requires_grad_()
    model(inputs_embeds=at, use_cache=False).logits[:, -1, 3].sum().backward()
    torch.testing.assert_close(first_half(grad), at.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_leaves_nothing_behind_and_misses_no_rule(tiny: Callable[..., Any], kind: str):
    model = tiny(kind)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    before = model.config._attn_implementation
    embedded = model.get_input_embeddings()(torch.cat([IDS, OTHER])).detach()
    multipliers(model, embedded)
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert (len(ACTIVE), model.config._attn_implementation) == (0, before)
    with pytest.raises(RuleNotFiredError, match="secant attention"):
        multipliers(model, embedded, before=ACTIVE.clear)


def test_an_odd_number_of_rows_is_refused(tiny_llama: Any):
    with pytest.raises(ExciseError, match="3 rows are no prompts"), DifferenceScope(tiny_llama):
        tiny_llama(input_ids=torch.cat([IDS, OTHER])[:3])
    with DifferenceScope(tiny_llama) as scope:  # nothing is kept of a pass without gradients
        with torch.no_grad():
            tiny_llama(input_ids=torch.cat([IDS, OTHER]))
        hooks = [h for m in tiny_llama.modules() for h in m._forward_hooks.values()]
        kept = [a for h in hooks for a in getattr(h, "args", ()) if isinstance(a, dict)]
        assert not any(kept)
        assert scope.audit().silent
