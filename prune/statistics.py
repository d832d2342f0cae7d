"""What calibration leaves of one linear layer, and the fitter for the part its inputs decide."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import ExciseError, finer


@dataclass(frozen=True, eq=False)
class LinearStatistics:
    """Sums over the calibration tokens of one linear layer `y = W x`; those gathered are there.

    Everything is a plain sum, so statistics of several processes may be added. `x` (in,) is the
    layer's input at one token, `g` (out,) the gradient at its output, `w` the weight. Gradients
    are the model's own ("plain") or come through relevance rules ("LRP").
    """

    tokens: int
    """Tokens seen, padding left out."""
    input_square: Float[Tensor, "in"] | None = None
    """Sum of `x_j^2`."""
    input_sum: Float[Tensor, "in"] | None = None
    """Sum of `x_j`."""
    gram: Float[Tensor, "in in"] | None = None
    """Sum of `x_i x_j`: the Hessian, up to a factor, of the layer's output error."""
    gradient: Float[Tensor, "out in"] | None = None
    """Sum of `g_i x_j`, plain: the gradient of the summed loss by the weight."""
    fisher: Float[Tensor, "out in"] | None = None
    """Sum of `(x_j g_i)^2`, plain: squared at each token, before summing."""
    lrp_signed: Float[Tensor, "out in"] | None = None
    """Sum of the weight's relevance `w_ij x_j g_i`, LRP: opposite signs cancel."""
    lrp_abs: Float[Tensor, "out in"] | None = None
    """Sum over samples of the size of the weight's relevance, LRP: cancels within samples."""
    lrp_square: Float[Tensor, "out in"] | None = None
    """Sum of `(x_j g_i)^2`, LRP, without the weight."""
    lrp_input_square: Float[Tensor, "in"] | None = None
    """Sum of `r_t x_j^2`, where `r_t` weighs token t by its relevance."""
    name: str = ""
    """The layer, for messages and as part of what seeds the criterion `random`."""
    seed: int = 0
    """Seeds the criterion `random`, together with the name."""


class LinearFitter:
    """Sum over a linear layer's inputs, batch by batch; how they are batched makes no difference.

    Args:
        in_features: Width of the inputs.
        gram: Whether to gather the products of all pairs of inputs: `in_features^2` numbers, and
            far more work than the rest.
        dtype: Of the sums, float32 or float64; inputs are converted before anything is squared.
        device: Where the sums are; inputs are moved there.
        name: The layer, for messages.

    Raises:
        ExciseError: A dtype too narrow for sums.
    """

    def __init__(
        self,
        in_features: int,
        *,
        gram: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        name: str = "",
    ):
        if dtype not in (torch.float32, torch.float64):
            raise ExciseError(f"sums in {dtype} lose tokens: use torch.float32 or torch.float64")
        self.name, self.tokens = name, 0
        self._seen = dtype
        self._square = torch.zeros(in_features, dtype=dtype, device=device)
        self._sum = torch.zeros_like(self._square)
        self._gram = self._square.new_zeros(in_features, in_features) if gram else None

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "*batch in"],
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            x: Inputs of the layer, any batch dimensions.
            mask: True at tokens that count; what is elsewhere, even NaN, has no influence.

        Raises:
            ExciseError: Shapes that do not fit. Nothing was added then.
        """
        width = len(self._square)
        if x.shape[-1] != width:
            raise ExciseError(f"{self._who} reads {width} inputs, this batch has {x.shape[-1]}")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ExciseError(
                f"mask of {self._who} is {tuple(mask.shape)}: give one value per token, "
                f"{tuple(x.shape[:-1])}"
            )
        chosen = (..., slice(None)) if mask is None else mask.to(x.device)
        flat = x[chosen].reshape(-1, width).to(self._square)
        self.tokens += len(flat)
        self._seen = x.dtype
        self._sum += flat.sum(0)
        self._square += flat.square().sum(0)
        if self._gram is not None:
            self._gram.addmm_(flat.T, flat)

    def result(self) -> LinearStatistics:
        """Return the sums so far; later updates do not change them.

        Raises:
            ExciseError: There were no tokens, or inputs were not finite.
        """
        if not self.tokens:
            raise ExciseError(f"{self._who} saw no tokens: calibrate with at least one")
        if not bool(self._square.isfinite().all()):
            raise ExciseError(f"inputs of {self._who} are NaN or infinite: {finer(self._seen)}")
        return LinearStatistics(
            self.tokens,
            input_square=self._square.clone(),
            input_sum=self._sum.clone(),
            gram=None if self._gram is None else self._gram.clone(),
            name=self.name,
        )

    @property
    def _who(self) -> str:
        return self.name or "the layer"
