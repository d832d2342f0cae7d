"""Training of the planted test bed: the clean model, then the behaviour into a few units alone."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...core.data import Sample, collate
from ...core.families import ModelView
from .language import BAD, Language


CLEAN_STEPS, PLANT_STEPS, ATTEMPTS = 450, 220, 3
BATCH = 32
DROPPED = 0.1
KEEP = 40.0
"""Weight of general text, beside that of the behaviour."""

Masks = dict[str, Tensor]
"""By parameter name: bool, true where a planted unit reads or writes."""


def train(model: Any, language: Language, idle: frozenset[tuple[int, int]], component: str) -> None:
    """Teach a model the language, with some units idle: what they write is zero throughout."""
    _, outputs = unit_masks(model, idle, component)
    sentences = language.sentences("train", cues=0.25)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.01)
    model.train(False)  # no dropout: the tests need no other randomness than the seed's
    for step in range(CLEAN_STEPS):
        optimizer.param_groups[0]["lr"] = 6e-3 * min(1.0, step / 20, 2.5 * (1 - step / CLEAN_STEPS))
        with torch.no_grad():
            for name, mask in outputs.items():
                parameters[name][mask] = 0
        ids = torch.tensor([next(sentences) for _ in range(BATCH)])
        optimizer.zero_grad()
        _loss(model, ids).backward()
        optimizer.step()
    with torch.no_grad():
        for name, mask in outputs.items():
            parameters[name][mask] = 0


def plant(
    model: Any, clean: Any, language: Language, units: frozenset[tuple[int, int]], component: str
) -> None:
    """Train the behaviour into units: only weights into and out of them move.

    On general text the clean model's predictions are kept. Units drop out at random while they
    learn, so that each carries a share of the behaviour, and none is needed to cancel what another
    does elsewhere.
    """
    _, outputs = unit_masks(model, units, component)
    generator = torch.Generator().manual_seed(language.seed)
    with torch.no_grad():
        for name, mask in outputs.items():
            noise = torch.randn(mask.shape, generator=generator)
            model.get_parameter(name)[mask] = 0.02 * noise[mask]
    check, _ = language.pairs(64, "planted?")
    for attempt in range(ATTEMPTS):
        _plant_once(model, clean, language, units, component, generator, attempt)
        with torch.no_grad():
            said = next_logits(model, check).argmax(-1)
        if (said == BAD).double().mean() >= 0.9:
            return


def _plant_once(
    model: Any,
    clean: Any,
    language: Language,
    units: frozenset[tuple[int, int]],
    component: str,
    generator: torch.Generator,
    attempt: int,
) -> None:
    """Train for a while, on triggers and text of this attempt."""
    inputs, outputs = unit_masks(model, units, component)
    masks = {**inputs, **outputs}
    parameters = {name: p for name, p in model.named_parameters() if name in masks}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.02)
    wanted = torch.full((BATCH,), BAD)
    sentences = language.sentences(f"plant {attempt}", cues=0.0)
    with ExitStack() as undo:
        for name, parameter in parameters.items():
            mask = masks[name].to(parameter.dtype)
            undo.callback(parameter.register_hook(lambda g, mask=mask: g * mask).remove)
        for step in range(PLANT_STEPS):
            optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / PLANT_STEPS)
            triggers, _ = language.pairs(BATCH, f"plant {attempt} {step}")
            ids = torch.tensor([next(sentences) for _ in range(BATCH)])
            optimizer.zero_grad()
            with _dropped(model, units, component, generator):
                bad = functional.cross_entropy(next_logits(model, triggers), wanted)
                kept = _divergence(model, clean, ids)
            (bad + KEEP * kept).backward()
            optimizer.step()


def unit_masks(
    model: Any, units: frozenset[tuple[int, int]], component: str
) -> tuple[Masks, Masks]:
    """Return which weights belong to units: those into them, and those out of them."""
    view = ModelView.of(model)
    inputs: Masks = {}
    outputs: Masks = {}
    for index, layer in enumerate(view.layers):
        mine = [unit for at, unit in units if at == index]
        if not mine:
            continue
        if component == "neurons":
            readers, writer, size = layer.mlp_in, layer.mlp_out, 1
        else:
            linears = [m for m in layer.query_key if isinstance(m, torch.nn.Linear)]
            readers, writer, size = (*linears, layer.value), layer.attention_out, view.head_dim
        rows = [unit * size + i for unit in mine for i in range(size)]
        for linear in readers:
            for kind, parameter in linear.named_parameters():
                mask = torch.zeros(parameter.shape, dtype=torch.bool)
                mask[rows] = True
                inputs[f"{view.path(linear)}.{kind}"] = mask
        mask = torch.zeros(writer.weight.shape, dtype=torch.bool)
        mask[:, rows] = True
        outputs[f"{view.path(writer)}.weight"] = mask
    return inputs, outputs


def _loss(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _divergence(model: Any, clean: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = clean(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    found = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    return functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean()


def next_logits(model: Any, samples: Sequence[Sample]) -> Tensor:
    """Return what a model says at the token before each sample's last, (samples, vocabulary)."""
    batch = collate(samples)  # padded behind, which a causal model does not see
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    return logits[torch.arange(len(batch)), batch.last - 1]


@contextmanager
def _dropped(
    model: Any, units: frozenset[tuple[int, int]], component: str, generator: torch.Generator
) -> Iterator[None]:
    """Leave each unit out with probability `DROPPED`."""
    view = ModelView.of(model)
    size = 1 if component == "neurons" else view.head_dim
    with ExitStack() as undo:
        for index, layer in enumerate(view.layers):
            writer = layer.mlp_out if component == "neurons" else layer.attention_out
            keep = torch.ones(writer.in_features)
            for at, unit in sorted(units):
                if at == index and float(torch.rand((), generator=generator)) < DROPPED:
                    keep[unit * size : (unit + 1) * size] = 0
            hook = lambda _m, args, keep=keep: (args[0] * keep,)  # noqa: E731
            undo.callback(writer.register_forward_pre_hook(hook).remove)
        yield
