"""Sparse weight circuits: elements of the layers' matrices, as in SparC3 (arXiv 2506.13727)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.data import batches
from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.held import changed
from ..lrp.fitter import RelevanceFitter
from .pairs import Pairs


WEIGHT_METHODS = ("lrp", "gradient-x-activation", "activation-norm", "random")
"""Methods that score weights: relevance, plain gradient times weight, Wanda, the control."""


def check_weight_method(method: str) -> None:
    """Refuse a method that scores no weights.

    Raises:
        ExciseError: Names those that do.
    """
    if method not in WEIGHT_METHODS:
        raise ExciseError(
            f"method {method!r} scores no weights: use one of {', '.join(WEIGHT_METHODS)}"
        )


def weight_scores(
    model: Any, pairs: Pairs, method: str = "lrp", batch_size: int = 8, seed: int = 0
) -> Float[Tensor, " weights"]:
    """Score every weight of the layers' linears for the logit difference of prompts.

    Args:
        model: A causal language model of a supported family.
        pairs: Prompts with answer and wrong answer; counterfactuals are not looked at.
        method: One of `WEIGHT_METHODS`.
        batch_size: Prompts per pass.
        seed: Of the method `random`.

    Returns:
        Ranks within rows, between 0 and 1, as Wanda compares: of the mean over prompts of what
        each prompt says in size, since relevance of both signs is needed, and of Wanda's scores.
        Uniform numbers of `random`. float32 on the CPU, all matrices one after the other in model
        order.
    """
    check_weight_method(method)
    aggregate = "signed" if method in ("activation-norm", "random") else "abs"
    fitter = RelevanceFitter(model, "logit-difference", method, (), ("*",), aggregate, seed=seed)
    for batch in batches(pairs.clean, batch_size):
        fitter.update(batch)
    found = fitter.result().weights.values()
    if method != "random":
        found = map(_row_ranks, found)
    return torch.cat([scores.flatten().cpu() for scores in found])


@contextmanager
def only_weights(view: ModelView, kept: Bool[Tensor, " weights"]) -> Iterator[None]:
    """Set all other weights of the layers' linears to zero, for a while."""
    linears = list(view.layer_linears().values())
    parts = kept.split([linear.weight.numel() for linear in linears])

    def rest_zero() -> Iterator[tuple[Tensor, Any, Tensor]]:
        for linear, keep in zip(linears, parts, strict=True):
            weight = linear.weight
            yield weight, ..., weight * keep.view_as(weight).to(weight.device)

    with changed(view.model, rest_zero):
        yield


def _row_ranks(scores: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    """Return the rank of each score in its row, between 0 and 1."""
    return scores.argsort(1).argsort(1).float() / scores.shape[1]
