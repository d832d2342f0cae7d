"""What went leaves its mean behind: the bias of the linear that read it takes it up.

The mean contribution of what goes, `W[:, gone] @ mean[gone]`, is added to the bias, so that the
linear's mean output stays what it was on the calibration tokens (An et al. 2024, FLAP, arXiv
2312.11983). Means are those of the dense model: what earlier layers lost does not move them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.data import Batch
from ...core.errors import ExciseError, unknown_name
from ...core.families import ModelView, plain_linear
from ..activations import input_statistics


def mean_inputs_of(model: Any, batches: Iterable[Batch], component: str) -> dict[int, Tensor]:
    """Return the mean of what each layer's output linear reads, over the tokens of batches.

    Padding is left out. Sums are in float64. The model runs in evaluation mode, without gradients,
    and is left as it was.

    Args:
        model: A causal language model, or its `ModelView`.
        batches: Calibration data; at least one token.
        component: `neurons` (what the MLP's last linear reads) or `heads` (the output projection).

    Returns:
        By layer index, on the CPU in float64: (d_mlp,) or (n_heads * head_dim,).

    Raises:
        ExciseError: An unknown component, `layers` (nothing is left to take up a mean), no tokens,
            or activations that are not finite.
    """
    view = model if isinstance(model, ModelView) else ModelView.of(model)
    found = input_statistics(view, batches, outputs(view, component))
    means: dict[int, Tensor] = {}
    for index, statistics in enumerate(found):
        assert statistics.input_sum is not None
        means[index] = (statistics.input_sum / statistics.tokens).cpu()
    return means


def compensated_biases(
    view: ModelView, component: str, keep: Tensor, mean_inputs: Mapping[int, Tensor]
) -> list[Tensor]:
    """Return the output linears' biases with the mean contribution of what goes, by layer.

    Args:
        view: The model, still whole.
        component: `neurons` or `heads`.
        keep: (layers, units), true where one stays.
        mean_inputs: Mean of what each output linear reads, by layer index.

    Returns:
        (d_model,) for each layer, in the weight's dtype; nothing is changed yet.

    Raises:
        ExciseError: Means that do not fit or are not finite, or no place for a bias in the config.
    """
    biases = []
    linears = check_biases(view, component)
    if set(mean_inputs) != set(range(len(linears))):
        raise ExciseError(
            f"mean inputs are of layers {[*mean_inputs]}, and the model has 0 to {len(linears) - 1}"
        )
    for index, linear in enumerate(linears):
        mean = mean_inputs[index].detach()
        if tuple(mean.shape) != (linear.in_features,):
            raise ExciseError(
                f"mean inputs of layer {index} are {tuple(mean.shape)}, and "
                f"{view.path(linear)} reads {(linear.in_features,)}"
            )
        wide = keep[index].repeat_interleave(linear.in_features // keep.shape[1])
        gone = (~wide).nonzero().flatten().to(linear.weight.device)
        weight = linear.weight.detach()[:, gone].double()
        shift = weight @ mean.to(weight.device, torch.float64)[gone]
        bias = shift if linear.bias is None else linear.bias.detach() + shift
        biases.append(bias.to(linear.weight.dtype))
        if not bool(biases[-1].isfinite().all()):
            raise ExciseError(
                f"the bias of {view.path(linear)} would be NaN or infinite in "
                f"{linear.weight.dtype}: take the means and shrink with --dtype float32"
            )
    return biases


def check_biases(view: ModelView, component: str) -> list[nn.Linear]:
    """Return the output linears, by layer, if each has a bias or the config can give it one.

    Raises:
        ExciseError: The family has no place for a bias there, or whole layers are asked for.
    """
    linears = outputs(view, component)
    for linear in linears:
        if linear.bias is None and bias_key(view, component) is None:
            raise ExciseError(
                f"a config of type {view.family.name} has no bias for {view.path(linear)}: "
                "shrink without mean_inputs (--compensate)"
            )
    return linears


def outputs(view: ModelView, component: str) -> list[nn.Linear]:
    """Return the linears that read the components' activations, by layer."""
    if component == "neurons":
        return [plain_linear(layer.mlp_out, view) for layer in view.layers]
    if component == "heads":
        return [plain_linear(layer.attention_out, view) for layer in view.layers]
    if component == "layers":
        raise ExciseError("nothing takes up what a whole layer leaves: no mean inputs for layers")
    raise unknown_name("component", component, ("neurons", "heads"))


def bias_key(view: ModelView, component: str) -> str | None:
    """Return the config key that gives the output linears of this family a bias, if any."""
    return view.family.mlp_bias if component == "neurons" else view.family.attention_bias
