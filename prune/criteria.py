"""How much a weight of a linear layer matters: one pure function and one line per criterion.

Scores compare weights with each other: higher stays. Those that mean the same in two layers are
marked `comparable`; where others are compared over layers, they are levelled first (see `choice`).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import ExciseError, finer, look_up
from .statistics import LinearStatistics


Scores = Float[Tensor, "out in"]


def magnitude(weight: Scores) -> Scores:
    """`|w|`."""
    return weight.abs()


def wanda(weight: Scores, input_square: Float[Tensor, "in"]) -> Scores:
    """`|w_ij| ||x_j||_2`, the norm over all tokens (Sun et al. 2023, arXiv 2306.11695, eq. 1)."""
    return weight.abs() * input_square.sqrt()


def ria(weight: Scores, input_square: Float[Tensor, "in"]) -> Scores:
    """`(|w_ij| / sum_i |w_ij| + |w_ij| / sum_j |w_ij|) ||x_j||_2^a`, with `a = 0.5`.

    Relative importance and activations (Zhang et al. 2024, "Plug-and-Play", ICLR). In a column or
    row of zeros every share is 0.
    """
    size = weight.abs()
    smallest = torch.finfo(size.dtype).tiny
    column, row = size.sum(0), size.sum(1, keepdim=True)
    share = size / column.clamp_min(smallest) + size / row.clamp_min(smallest)
    return share * input_square.pow(0.25)


def gradient_weight(weight: Scores, gradient: Scores, tokens: int) -> Scores:
    """`|w g|` with the mean gradient over tokens (Molchanov et al. 2019, arXiv 1906.10771)."""
    return (weight * (gradient / tokens)).abs()


def second_moment(weight: Scores, square: Scores, tokens: int) -> Scores:
    """`|w| sqrt(E[(x g)^2])`: the root of the empirical Fisher information of scaling a weight.

    Optimal Brain Damage with the diagonal empirical Fisher (LeCun et al. 1990; Singh and Alistarh
    2020, arXiv 2004.14340), squared at each token: summed first, tokens cancel.
    """
    return weight.abs() * (square / tokens).sqrt()


def factored_moment(weight: Scores, square: Scores, tokens: int) -> Scores:
    """`second_moment` with the Fisher information replaced by its row sums times column sums.

    `r_i c_j / sum(F)`: exact where sizes of gradients and inputs do not depend on each other, and
    with far fewer numbers to estimate (as Adafactor keeps second moments, Shazeer and Stern 2018,
    arXiv 1804.04235). Column sums are `sum_t ||g_t||^2 x_tj^2`: input norms, tokens weighed.
    """
    rows, columns = square.sum(1, keepdim=True), square.sum(0, keepdim=True)
    smallest = torch.finfo(square.dtype).tiny
    return second_moment(weight, rows / square.sum().clamp_min(smallest) * columns, tokens)


def mean_over_tokens(_weight: Scores, total: Scores, tokens: int) -> Scores:
    """Relevance as it was summed, per token."""
    return total / tokens


def wanda_fisher(
    weight: Scores, input_square: Float[Tensor, "in"], square: Scores, tokens: int
) -> Scores:
    """Geometric mean of `wanda` and `second_moment`, each over its own mean."""
    return geometric_mean(wanda(weight, input_square), second_moment(weight, square, tokens))


def geometric_mean(first: Scores, second: Scores) -> Scores:
    """`sqrt(a / mean(a) * b / mean(b))`: the scale of neither matters.

    Scores that are zero everywhere rank nothing, and leave the ranking to the other.
    """
    return _over_mean(first).sqrt() * _over_mean(second).sqrt()


def random(weight: Scores, name: str, seed: int) -> Scores:
    """Uniform numbers in [0, 1), the control: the same for one seed, layer name and shape.

    The generator is seeded with a hash of `LinearStatistics.seed` and `.name`, so that neither
    the order of the layers nor the device makes a difference.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(weight.shape, generator=generator).to(weight)


@dataclass(frozen=True)
class Criterion:
    """One way to score the weights of a linear layer."""

    name: str
    formula: Callable[..., Tensor]
    """Given the weight and then each field of `needs`, in this order; pure."""
    needs: tuple[str, ...]
    """Fields of `LinearStatistics`; `tokens`, `name` and `seed` are always there."""
    summary: str
    source: str
    comparable: bool = False
    """Whether scores mean the same in two layers, as a global scope would have it."""

    def score(
        self, weight: Float[Tensor, "out in"], statistics: LinearStatistics
    ) -> Float[Tensor, "out in"]:
        """Score a weight matrix: higher stays.

        Args:
            weight: Of any float dtype; half precision is scored in float32.
            statistics: What calibration left of this layer.

        Raises:
            ExciseError: A statistic that is missing or of another shape, no tokens, or scores
                that are not finite.
        """
        where = f" of {statistics.name}" if statistics.name else ""
        weight = weight.detach()
        own, weight = weight.dtype, weight.to(torch.promote_types(weight.dtype, torch.float32))
        given = []
        for field in self.needs:
            value = getattr(statistics, field)
            if value is None:
                raise ExciseError(
                    f"criterion {self.name!r} needs the statistic {field!r}{where}, which this "
                    "calibration did not gather"
                )
            if isinstance(value, Tensor):
                expected = weight.shape[-value.ndim :]
                if value.shape != expected:
                    raise ExciseError(
                        f"statistic {field!r}{where} is {tuple(value.shape)}, and a weight of "
                        f"{tuple(weight.shape)} needs {tuple(expected)}"
                    )
                value = value.to(weight.device)
            elif field == "tokens" and value < 1:
                raise ExciseError(f"statistics{where} are of {value} tokens: give at least 1")
            given.append(value)
        scores = self.formula(weight, *given)
        if not bool(scores.isfinite().all()):
            raise ExciseError(f"scores by {self.name!r}{where} are NaN or infinite: {finer(own)}")
        return scores


_ALL = (
    Criterion("magnitude", magnitude, (), "size of the weight", "Han et al. 2015", True),
    Criterion("wanda", wanda, ("input_square",), "weight times input norm", "arXiv 2306.11695"),
    Criterion(
        "ria",
        ria,
        ("input_square",),
        "share of row and column times root of the input norm",
        "Zhang et al. 2024, ICLR",
    ),
    Criterion(
        "gradient-x-weight",
        gradient_weight,
        ("gradient", "tokens"),
        "size of weight times mean gradient: tokens cancel",
        "arXiv 1906.10771",
        comparable=True,
    ),
    Criterion(
        "fisher",
        second_moment,
        ("fisher", "tokens"),
        "weight times root mean square of its gradient per token; comparable across layers",
        "arXiv 2004.14340",
        comparable=True,
    ),
    Criterion(
        "fisher-factored",
        factored_moment,
        ("fisher", "tokens"),
        "fisher from its row sums and column sums: less noise, comparable across layers",
        "arXiv 1804.04235, of fisher",
        comparable=True,
    ),
    Criterion(
        "lrp-signed",
        mean_over_tokens,
        ("lrp_signed", "tokens"),
        "signed relevance: for correction, ruinous for compression",
        "arXiv 2506.13727, eq. 1",
    ),
    Criterion(
        "lrp-abs",
        mean_over_tokens,
        ("lrp_abs", "tokens"),
        "size of each sample's relevance",
        "arXiv 2506.13727",
    ),
    Criterion(
        "lrp",
        second_moment,
        ("lrp_square", "tokens"),
        "root mean square of relevance per token; shrinks from layer to layer",
        "arXiv 2402.05602, squared before summing",
    ),
    Criterion(
        "lrp-wanda",
        wanda,
        ("lrp_input_square",),
        "weight times relevance-weighted input norm",
        "arXiv 2306.11695, tokens weighed",
    ),
    Criterion(
        "wanda-fisher",
        wanda_fisher,
        ("input_square", "fisher", "tokens"),
        "geometric mean of wanda and fisher",
        "this project",
    ),
    Criterion(
        "wanda-lrp",
        wanda_fisher,
        ("input_square", "lrp_square", "tokens"),
        "geometric mean of wanda and lrp",
        "this project",
    ),
    Criterion(
        "random", random, ("name", "seed"), "seeded uniform numbers: the control", "none", True
    ),
)
CRITERIA: dict[str, Criterion] = {criterion.name: criterion for criterion in _ALL}
"""Every criterion by name; what lists, checks or documents them reads this table."""


def get_criterion(name: str) -> Criterion:
    """Return a criterion by name.

    Raises:
        ExciseError: No criterion has this name.
    """
    return look_up("criterion", name, CRITERIA)


def _over_mean(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return torch.where(mean == 0, torch.ones_like(scores), scores / mean)
