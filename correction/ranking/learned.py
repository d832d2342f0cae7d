"""Factors that are learned: how far to damp each unit so that pairs change and the rest stays.

A ranking says which units to look at, one by one. What they do together, and how far each should
be damped, is then learned by gradient descent on the factors alone; weights stay as they are.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ...core.data import Sample, collate
from ...core.errors import ExciseError, finer
from ...core.families import ModelView
from ...core.frozen import frozen
from ...edits.edit import Edit
from ..data.behaviour import BehaviourSet
from .contrast import Contrast
from .sources import Component


Unit = tuple[int, int]

STEPS = 60
PAIRS = 12
TEXTS = 8
"""Samples of general text beside as many pairs in each step."""
BETA = 0.3
"""How soon a pair that is told apart counts no more, per nat."""
PRICE = 4.0
"""What a nat per token of divergence on general text costs, in units of the preference loss."""
RATE = 0.05
START = 0.5
"""Factor that all begin with. What begins at 1 is fitted to the examples more sharply, by fewer
units, and takes less away on prompts that it has not seen."""
LEAST = 0.02
"""A unit that is damped by less is left alone."""
SETTINGS = {
    "steps": STEPS, "pairs": PAIRS, "texts": TEXTS, "beta": BETA, "price": PRICE, "rate": RATE,
    "start": START, "least": LEAST,
}  # fmt: skip
"""All of them, for the recipe."""


def preference_loss(
    bad: Float[Tensor, " pairs"], good: Float[Tensor, " pairs"], beta: float = BETA
) -> Float[Tensor, ""]:
    """Return the mean of `-log sigmoid(beta (good - bad))`.

    The loss of direct preference optimisation (Rafailov et al. 2023, equation 7).

    Args:
        bad: Change of the log-probability of undesired continuations, in nats.
        good: The same of general ones.
        beta: How soon a pair that is told apart counts no more.
    """
    return -functional.logsigmoid(beta * (good - bad)).mean()


def learned_factors(
    model: Any,
    behaviour: BehaviourSet,
    units: Sequence[Unit],
    component: Component,
    *,
    price: float = PRICE,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = False,
) -> dict[Unit, float]:
    """Learn by what each unit is scaled, from 0 (removed) to 1 (left alone).

    Minimises the preference loss of undesired against general samples, plus `price` times the
    Kullback-Leibler divergence per token from the unedited model on the reference samples, by Adam
    on the factors. Sets that are no pairs are paired at random.

    Args:
        model: A causal language model of a supported family; its weights are not touched.
        behaviour: What is to go, what may stay, and what must not change.
        units: As (layer, unit).
        component: What they are.
        price: More changes less.
        steps: Of the descent; the step size falls to 0.
        seed: Of the samples in each step.
        progress: Whether to draw a progress bar on a terminal.

    Returns:
        Factors of the units that are damped by more than a little.

    Raises:
        ExciseError: Numbers are not finite, as in float16, or memory is short.
    """
    view, draw = ModelView.of(model), random.Random(f"excise {seed}")
    device = view.embedding.weight.device
    factors = torch.full((len(units),), START, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([factors], lr=RATE)
    bad, good, kept = behaviour.undesired, behaviour.general, behaviour.reference
    try:
        with frozen(view):
            before = [_before(view, samples) for samples in (bad, good)]
            first, second = (_Deck(len(samples), draw) for samples in (bad, good))
            pairs = min(PAIRS, len(bad), len(good))
            for step in tqdm(range(steps), "learning factors", disable=None if progress else True):
                optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
                mine = first.deal(pairs)
                other = mine if behaviour.paired else second.deal(pairs)
                text = draw.sample(kept, min(TEXTS, len(kept)))
                with torch.no_grad():
                    _, wanted = _explained(view, text)
                # to the end of the pass back, in which checkpointed layers run again
                with _scaled(view, component, units, factors), torch.enable_grad():
                    both, _ = _explained(view, [*(bad[i] for i in mine), *(good[i] for i in other)])
                    _, said = _explained(view, text)
                    gone, left = (
                        both[: len(mine)] - before[0][mine],
                        both[len(mine) :] - before[1][other],
                    )
                    divergence = functional.kl_div(
                        said.log_softmax(-1),
                        wanted.log_softmax(-1),
                        log_target=True,
                        reduction="batchmean",
                    )
                    loss = preference_loss(gone, left) + price * divergence
                    if not bool(loss.isfinite()):
                        raise ExciseError(f"what is learned is not finite: {finer(loss.dtype)}")
                    (factors.grad,) = torch.autograd.grad(loss, [factors])
                optimizer.step()
                with torch.no_grad():
                    factors.clamp_(0, 1)
    except torch.OutOfMemoryError as error:
        raise ExciseError(
            f"{2 * PAIRS} samples with gradients do not fit on {device}: give shorter ones, or "
            "--device cpu"
        ) from error
    found = zip(units, factors.tolist(), strict=True)
    return {unit: factor for unit, factor in found if factor < 1 - LEAST}


def learned_edit(
    model: Any,
    behaviour: BehaviourSet,
    contrast: Contrast,
    k: int,
    *,
    price: float = PRICE,
    steps: int = STEPS,
    seed: int = 0,
    progress: bool = False,
) -> Edit:
    """Make an edit of the first k units of a contrast, with factors that are learned.

    Args:
        model: The one that was contrasted.
        behaviour: As of `learned_factors`.
        contrast: Protected units are left alone.
        k: How many units at most.
        price: As of `learned_factors`.
        steps: Likewise.
        seed: Likewise.
        progress: Likewise.

    Raises:
        ExciseError: There are not as many units, or none is worth its price.
    """
    units = contrast.top(k)
    found = learned_factors(
        model, behaviour, units, contrast.component,
        price=price, steps=steps, seed=seed, progress=progress,
    )  # fmt: skip
    if not found:
        raise ExciseError(f"at a price of {price:g} none of {k} {contrast.component} is damped")
    return Edit.of_units(contrast.component, found)


class _Deck:
    """Indices in random order; shuffled anew where too few are left."""

    def __init__(self, n: int, draw: random.Random):
        self.n, self.draw = n, draw
        self.left: list[int] = []

    def deal(self, n: int) -> list[int]:
        """Return n of them, different ones."""
        if len(self.left) < n:
            self.left = self.draw.sample(range(self.n), self.n)
        dealt, self.left = self.left[:n], self.left[n:]
        return dealt


def _explained(
    view: ModelView, samples: Sequence[Sample]
) -> tuple[Float[Tensor, " b"], Float[Tensor, "tokens v"]]:
    """Return the log-probability of each continuation, and the logits that predict its tokens."""
    batch = collate(samples).to(view.embedding.weight.device)
    assert batch.continuation is not None
    wanted = functional.pad(batch.continuation[:, 1:], (0, 1))
    logits = view.model(**batch.model_inputs(view.family.passes_position_ids)).logits[wanted]
    logits = logits.float()
    losses = functional.cross_entropy(logits, batch.input_ids.roll(-1, 1)[wanted], reduction="none")
    rows = wanted.nonzero()[:, 0]
    return torch.zeros(len(samples), device=logits.device).index_add(0, rows, -losses), logits


@torch.no_grad()
def _before(view: ModelView, samples: Sequence[Sample]) -> Float[Tensor, " samples"]:
    """Return the unedited model's log-probability of each continuation."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids))
    found = [
        _explained(view, [samples[i] for i in order[at : at + 2 * PAIRS]])[0]
        for at in range(0, len(order), 2 * PAIRS)
    ]
    values = torch.cat(found)
    return torch.empty_like(values).index_copy_(
        0, torch.tensor(order, device=values.device), values
    )


@contextmanager
def _scaled(
    view: ModelView, component: Component, units: Sequence[Unit], factors: Tensor
) -> Iterator[None]:
    """Multiply units by factors that can be differentiated, on their way out."""
    width = view.d_mlp if component == "neurons" else view.n_heads
    rows = torch.ones(len(view.layers), width, device=factors.device)
    at = torch.tensor(list(units), device=factors.device).T
    rows = rows.index_put((at[0], at[1]), factors)
    if component == "heads":
        rows = rows.repeat_interleave(view.head_dim, 1)
    with ExitStack() as undo:
        for layer, row in zip(view.layers, rows, strict=True):
            module = layer.mlp_out if component == "neurons" else layer.attention_out
            hook = lambda _m, args, row=row: (args[0] * row.to(args[0]),)  # noqa: E731
            undo.callback(module.register_forward_pre_hook(hook).remove)
        yield
