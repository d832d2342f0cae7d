"""How much a whole neuron, head or layer matters, as formulas: pure functions of tensors.

Higher stays. Where they come from, and their names: see `units`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


UnitScores = Float[Tensor, " units"]
Columns = Float[Tensor, "units columns"]
"""A value per input of the linear that reads the unit: one of a neuron, `head_dim` of a head."""


def magnitude(*parts: Float[Tensor, "units _"]) -> UnitScores:
    """`||w||_2` over all weights of a unit, given in several parts."""
    return torch.stack([part.square().sum(1) for part in parts]).sum(0).sqrt()


def wanda(weight_square: Columns, input_square: Columns) -> UnitScores:
    """`sqrt(sum_j ||W_j||^2 ||h_j||^2)`: of a neuron `||W_j||_2 ||h_j||_2`.

    Weight times activation norm (arXiv 2306.11695), as Wanda-sp takes it to whole units (An et al.
    2024, FLAP, arXiv 2312.11983), here with Euclidean norms throughout.

    Args:
        weight_square: `||W_j||_2^2` of the columns that read the unit.
        input_square: Sum of `h_j^2` over tokens.
    """
    return (weight_square * input_square).sum(1).sqrt()


def flap(
    weight_square: Columns, input_square: Columns, input_sum: Columns, tokens: int
) -> UnitScores:
    """`sum_j Var(h_j) ||W_j||_2^2`: what is lost if a unit becomes its mean (arXiv 2312.11983).

    The paper standardises scores within each layer, to compare layers, and divides by `tokens - 1`;
    neither changes the order within a layer.

    Args:
        weight_square: `||W_j||_2^2` of the columns that read the unit.
        input_square: Sum of `h_j^2` over tokens; float64, since most of it may cancel.
        input_sum: Sum of `h_j`.
        tokens: How many.
    """
    variance = input_square / tokens - (input_sum / tokens).square()
    return (variance.clamp_min(0) * weight_square).sum(1)


def block_influence(
    read: Float[Tensor, "tokens d_model"], given: Float[Tensor, "tokens d_model"]
) -> Float[Tensor, " tokens"]:
    """`1 - cos(x, y)` of what a layer reads and gives at each token.

    Its mean is block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853, eq. 1).
    """
    return 1 - torch.nn.functional.cosine_similarity(read, given, dim=-1)
