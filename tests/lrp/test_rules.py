"""Each rule a second time: slow, plain, in float64, from the formula in its source."""

import math

import pytest
import torch
from excise.lrp.rules import SLOPES, ActivationRule, EpsilonRule, NormRule, ShareRule
from hypothesis import given
from hypothesis import strategies as st


FUNCTIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
}


def fire() -> None:
    """Stand in for the audit."""


def assert_tight(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", SLOPES)
def test_activation_hands_relevance_through(kind: str):
    x, relevance = tensor(5, 7).requires_grad_(), tensor(5, 7, seed=1)
    y = FUNCTIONS[kind](x.detach())
    out = ActivationRule.apply(x, y, SLOPES[kind], fire)
    assert torch.equal(out, y)
    out.backward(relevance / y)
    assert x.grad is not None
    assert_tight(x.detach() * x.grad, relevance)


@pytest.mark.parametrize("kind", SLOPES)
@given(x=st.floats(-30, 30))
def test_slope_is_the_ratio_and_its_limit_at_zero(kind: str, x: float):
    at = torch.tensor([x, 0.0], dtype=torch.float64)
    slope = SLOPES[kind](at)
    assert slope[1] == 0.5
    if abs(x) > 1e-3:
        expected = (FUNCTIONS[kind](at[:1]) / at[0]).item()
        assert slope[0].item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_relu_needs_no_rule():
    x = tensor(100).requires_grad_()
    torch.relu(x).sum().backward()
    assert x.grad is not None
    expected = torch.where(x > 0, torch.relu(x) / x, 0.0)
    assert_tight(x.grad, expected.detach())


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_norm_is_linear_with_a_constant_deviation(centred: bool, weighted: bool):
    x, grad, eps = tensor(4, 6).requires_grad_(), tensor(4, 6, seed=1), 1e-5
    scale = tensor(6, seed=2) if weighted else None
    out = NormRule.apply(x, tensor(4, 6, seed=3), scale, eps, centred, fire)
    out.backward(grad)
    for row in range(4):  # the matrix of the linear map, written out
        values = x.detach()[row].tolist()
        mean = sum(values) / 6 if centred else 0.0
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 6 + eps)
        for i in range(6):
            expected = sum(
                grad[row, j].item()
                * (scale[j].item() if scale is not None else 1.0)
                * ((i == j) - (1 / 6 if centred else 0.0))
                / deviation
                for j in range(6)
            )
            assert x.grad is not None
            assert x.grad[row, i].item() == pytest.approx(expected, rel=1e-10)


def test_share_halves():
    x = tensor(9).requires_grad_()
    ShareRule.apply(x, 0.5, fire).sum().backward()
    assert x.grad is not None
    assert_tight(x.grad, torch.full_like(x, 0.5).detach())


@given(z=st.floats(-5, 5), epsilon=st.floats(1e-6, 1.0))
def test_epsilon_shrinks_relevance(z: float, epsilon: float):
    """Eq. 9 of arXiv 2506.13727: `R z / (z + eps sign z)`, with sign(0) = 1."""
    at = torch.tensor([z], dtype=torch.float64, requires_grad=True)
    EpsilonRule.apply(at, epsilon, fire).sum().backward()
    sign = 1.0 if z >= 0 else -1.0
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(z / (z + epsilon * sign), rel=1e-10)


def test_half_precision_zero_gives_no_nan():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.zeros(3, dtype=dtype, requires_grad=True)
        out = ActivationRule.apply(x, x.detach(), SLOPES["silu"], fire)
        out.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0.5] * 3
