"""What contrasts compare: per-sample scores of heads or neurons, from relevance or activations."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...core.data import Batch, Sample, batches
from ...core.errors import ExciseError
from ...core.families import ModelView
from ...lrp.run import score_samples
from .maths import Samples, Scores


Component = Literal["neurons", "heads"]


@dataclass(frozen=True)
class ExplainedTokens:
    """Mean over a sample's explained tokens of their log-probability, or logit.

    The mean, not the sum: samples of different length are then on one scale.
    """

    log_probability: bool = True

    def __call__(self, logits: Float[Tensor, "b t v"], batch: Batch) -> Float[Tensor, " b"]:
        """Return one value per sample."""
        if batch.continuation is None:
            raise ExciseError("samples without a continuation have nothing to contrast")
        wanted = functional.pad(batch.continuation[:, 1:], (0, 1))
        ids = batch.input_ids.roll(-1, 1)
        if self.log_probability:
            values = -functional.cross_entropy(
                logits.flatten(0, 1), ids.flatten(), reduction="none"
            )
        else:
            values = logits.gather(2, ids[..., None])
        return (values.view(ids.shape) * wanted).sum(1) / wanted.sum(1)


SEEDS: dict[str, ExplainedTokens] = {
    "logprob": ExplainedTokens(True),
    "logit": ExplainedTokens(False),
}
"""What relevance starts from."""
BOTH = "both"
"""The sum of what both say, each in units of its own size."""


def relevances(
    model: Any,
    samples: Sequence[Sample],
    component: Component,
    method: str,
    seed: ExplainedTokens,
    batch_size: int = 8,
    progress: bool = False,
) -> Samples:
    """Return each sample's signed relevance per explained token, in nats or logits per token.

    Args:
        model: A causal language model of a supported family.
        samples: With continuations.
        component: What is scored.
        method: A name of `excise.lrp.methods.METHODS`.
        seed: What is explained.
        batch_size: Samples per pass. They are sorted by length, to save padding.
        progress: Whether to draw a progress bar on a terminal.
    """
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids))
    relevance = score_samples(
        model, [samples[i] for i in order], seed, method,
        components=(component,), batch_size=batch_size, progress=progress,
    )  # fmt: skip
    values = relevance.samples[component]
    return torch.empty_like(values).index_copy_(0, torch.tensor(order), values)


Reduce = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From activations (batch, seq, units), the real tokens, and those from which an explained one is
predicted (both (batch, seq) bool), to (batch, units)."""


def mean_size(x: Tensor, _real: Tensor, predicting: Tensor) -> Tensor:
    """Mean absolute activation where explained tokens are predicted."""
    kept = predicting[..., None]
    return (x.abs() * kept).sum(1) / kept.sum(1)


def root_mean(x: Tensor, _real: Tensor, predicting: Tensor) -> Tensor:
    """Root mean square of the activation there."""
    kept = predicting[..., None]
    return ((x.square() * kept).sum(1) / kept.sum(1)).sqrt()


def highest(x: Tensor, real: Tensor, _predicting: Tensor) -> Tensor:
    """Largest activation of the sample."""
    return x.masked_fill(~real[..., None], -torch.inf).amax(1)


def activations(
    model: Any, samples: Sequence[Sample], component: Component, reduce: Reduce, batch_size: int = 8
) -> Samples:
    """Return each sample's activation of neurons, or size of heads' outputs.

    A neuron is what the MLP's last linear reads; of a head, the Euclidean norm of its output.
    """
    view = ModelView.of(model)
    parts = []
    for batch in batches(samples, batch_size):
        batch = batch.to(view.embedding.weight.device)
        assert batch.continuation is not None
        real = batch.attention_mask.bool()
        predicting = functional.pad(batch.continuation[:, 1:], (0, 1))
        found: list[Tensor] = []

        def see(
            _module: nn.Module,
            args: tuple[Tensor, ...],
            found: list[Tensor] = found,
            real: Tensor = real,
            predicting: Tensor = predicting,
        ) -> None:
            x = args[0].float().view(*real.shape, -1)  # OPT flattens batch and sequence
            if component == "heads":
                x = x.unflatten(-1, (view.n_heads, -1)).norm(dim=-1)
            found.append(reduce(x, real, predicting).cpu())

        with ExitStack() as undo, torch.no_grad():
            for layer in view.layers:
                module = layer.mlp_out if component == "neurons" else layer.attention_out
                undo.callback(module.register_forward_pre_hook(see).remove)
            model(**batch.model_inputs(view.family.passes_position_ids))
        parts.append(torch.stack(found, 1))
    return torch.cat(parts)


def output_norms(model: Any, component: Component) -> Scores:
    """Return the Euclidean norm of what each unit is multiplied with on its way out."""
    view = ModelView.of(model)
    rows = []
    for layer in view.layers:
        module = layer.mlp_out if component == "neurons" else layer.attention_out
        norms = module.weight.detach().float().square().sum(0).cpu()
        if component == "heads":
            norms = norms.unflatten(0, (view.n_heads, -1)).sum(-1)
        rows.append(norms.sqrt())
    return torch.stack(rows)
