"""What modules read and give over calibration tokens: one forward pass, padding left out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from ..core.data import Batch, Sample, batches
from ..core.errors import ExciseError
from ..core.families import ModelView
from .statistics import LinearFitter, LinearStatistics


See = Callable[[int, Float[Tensor, "tokens read"], Float[Tensor, "tokens given"]], None]
"""Given the index of a module, what it read and what it gave."""


def shown(samples: Sequence[Sample], batch_size: int, what: str, progress: bool) -> Iterator[Batch]:
    """Iterate over batches behind a progress bar that counts samples."""
    with tqdm(total=len(samples), desc=what, disable=None if progress else True) as bar:
        for batch in batches(samples, batch_size):
            yield batch
            bar.update(len(batch))


def run_through(
    view: ModelView, batches: Iterable[Batch], modules: Sequence[nn.Module], see: See
) -> int:
    """Run batches, and show what passes through some modules to a function.

    The model runs in evaluation mode, without gradients, and is left as it was.

    Args:
        view: The model.
        batches: Calibration data.
        modules: Linears or whole decoder layers.
        see: Called for each module and batch, without the padding.

    Returns:
        The number of tokens.

    Raises:
        ExciseError: There are none.
    """
    real, tokens = torch.zeros(0), 0

    def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Any], None]:
        def show(_module: nn.Module, read: tuple[Tensor, ...], given: Any) -> None:
            pair = (read[0], given[0] if isinstance(given, tuple) else given)
            # some linears of OPT read flat tensors already
            see(index, *(x.flatten(0, -2)[real.to(x.device)] for x in pair))

        return show

    body = view.model.get_submodule(view.family.body)
    with ExitStack() as undo, torch.no_grad():
        for index, module in enumerate(modules):
            undo.callback(module.register_forward_hook(hook(index)).remove)
        for module in view.model.modules():
            undo.callback(setattr, module, "training", module.training)
        view.model.eval()
        for batch in batches:
            batch = batch.to(view.embedding.weight.device)
            real = batch.attention_mask.flatten().bool()
            tokens += int(real.sum())
            body(**batch.model_inputs(view.family.passes_position_ids))
    if not tokens:
        raise ExciseError("there are no tokens to calibrate on: give some calibration text")
    return tokens


def input_statistics(
    view: ModelView, batches: Iterable[Batch], linears: Sequence[nn.Linear]
) -> list[LinearStatistics]:
    """Sum up what linears read: `input_sum` and `input_square`, in float64.

    Args:
        view: The model.
        batches: Calibration data.
        linears: Of this model.

    Raises:
        ExciseError: No tokens, or inputs that are not finite.
    """
    fitters = [
        LinearFitter(
            linear.in_features, gram=False, dtype=torch.float64, device=linear.weight.device,
            name=view.path(linear),
        )
        for linear in linears
    ]  # fmt: skip
    run_through(view, batches, linears, lambda index, read, _: fitters[index].update(read))
    return [fitter.result() for fitter in fitters]
