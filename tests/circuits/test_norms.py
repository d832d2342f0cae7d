"""Norms as linear maps, against autograd in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from excise.circuits.norms import LinearNorm
from excise.core.families import ModelView
from torch import nn


def norm_of(model: Any) -> nn.Module:
    return ModelView.of(model).layers[1].attention_norm


@pytest.mark.parametrize("kind", ["llama-mha", "opt"])
def test_the_derivative_is_autograds(doubled: Callable[[str], Any], kind: str):
    norm = norm_of(doubled(kind))
    draw = torch.Generator().manual_seed(0)
    x, part, grad = (torch.randn(3, 5, 32, dtype=torch.double, generator=draw) for _ in range(3))
    linear = LinearNorm.at(norm, x, constant_std=False)
    pushed: Any
    pulled: Any
    _, pushed = torch.autograd.functional.jvp(norm, x, part)
    _, pulled = torch.autograd.functional.vjp(norm, x, grad)
    tolerance = 1e-12 if kind == "opt" else 1e-6  # transformers' RMSNorm computes in float32
    assert torch.allclose(linear.forward(part), pushed, atol=tolerance)
    assert torch.allclose(linear.backward(grad), pulled, atol=tolerance)


@pytest.mark.parametrize("kind", ["llama-mha", "gemma3", "opt"])
def test_with_a_constant_deviation_parts_of_the_input_share_out_the_output(
    doubled: Callable[[str], Any], kind: str
):
    norm: Any = norm_of(doubled(kind))
    parts = torch.randn(4, 2, 32, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    linear = LinearNorm.at(norm, parts.sum(0), constant_std=True)
    bias = norm.bias if kind == "opt" else 0.0
    assert torch.allclose(linear.forward(parts).sum(0) + bias, norm(parts.sum(0)), atol=1e-6)


@pytest.mark.parametrize("kind", ["llama-mha", "gemma3", "opt"])
def test_between_two_inputs_the_difference_goes_where_the_outputs_differ(
    doubled: Callable[[str], Any], kind: str
):
    norm = norm_of(doubled(kind))
    draw = torch.Generator().manual_seed(2)
    x, other, part, grad = (
        torch.randn(6, 32, dtype=torch.double, generator=draw) for _ in range(4)
    )
    other = 3 * other + 1
    linear = LinearNorm.between(norm, x, other)
    tolerance = 1e-12 if kind == "opt" else 1e-5
    assert torch.allclose(linear.forward(x - other), norm(x) - norm(other), atol=tolerance)
    pulled: Any
    _, pulled = torch.autograd.functional.vjp(norm, x, grad)
    assert torch.allclose(LinearNorm.between(norm, x, x).backward(grad), pulled, atol=tolerance)
    pushed = (linear.forward(part) * grad).sum()
    assert torch.allclose(pushed, (part * linear.backward(grad)).sum(), atol=1e-12)
    large = LinearNorm.between(norm.half(), 60 * x.half(), 60 * other.half())
    exact = LinearNorm.between(norm, 60 * x, 60 * other)
    assert large.inverse_std.dtype == torch.half
    assert large.unit is not None
    assert exact.unit is not None
    assert torch.allclose(large.unit.double(), exact.unit.double(), atol=1e-2)


def test_backward_is_forward_transposed(doubled: Callable[[str], Any]):
    norm = norm_of(doubled("opt"))
    draw = torch.Generator().manual_seed(0)
    x, part, grad = (torch.randn(7, 32, dtype=torch.double, generator=draw) for _ in range(3))
    for constant in (True, False):
        linear = LinearNorm.at(norm, x, constant)
        forward, backward = (
            (linear.forward(part) * grad).sum(),
            (part * linear.backward(grad)).sum(),
        )
        assert torch.allclose(forward, backward, atol=1e-12)
