"""Pruning a model: layer by layer, resumable, one decoder layer on the device at a time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..core.data import Sample, batches, check_length, fingerprint
from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.identity import model_hash
from .calibrate import Survey, survey
from .choice import Choice, decide, linears_of, survey_needs
from .criteria import get_criterion
from .cut import Mask, plain_linear
from .inputs import Inputs
from .progress import Progress
from .recipe import SPARSEGPT, Recipe
from .scopes import count_gone, parse_scope
from .statistics import LinearStatistics
from .tune import predictions, tune
from .update import admm, obs, reconstruction_error, sparsegpt


@dataclass(frozen=True)
class Pruned:
    """What pruning left behind, besides the model."""

    mask: Mask
    """Which weights stay, by parameter name."""
    recipe: Recipe
    seconds: float
    errors: Mapping[str, float]
    """By path, where a gram matrix was gathered: squared error of the outputs per token, on the
    inputs of the pruned prefix."""
    divergences: Sequence[float] = ()
    """Of each pass of tuning: mean divergence from the dense model's predictions per token, nats.
    """

    @property
    def sparsity(self) -> float:
        """The share that is gone, counted."""
        return self.mask.sparsity


def prune_weights(
    model: Any,
    samples: Sequence[Sample],
    recipe: Recipe,
    *,
    batch_size: int = 4,
    device: Any = None,
    resume: str | Path | None = None,
    seed: int = 0,
    surveys: dict[tuple[str, ...], Survey] | None = None,
    progress: bool = False,
) -> Pruned:
    """Prune a model in place.

    What cannot be settled by the weights alone is gathered on calibration samples: gradients of
    the whole model where the recipe needs them, and then inputs, one decoder layer at a time.

    Args:
        model: A causal language model of a supported family, not quantised.
        samples: Calibration samples.
        recipe: How.
        batch_size: Samples per pass.
        device: Where layers are computed, one at a time; None leaves them where they are. The rest
            of the model stays where it is, and gradients are taken there.
        resume: Folder for progress: an interrupted run goes on from there at its layer, given the
            dense model again. Left in place: remove it when the result is safe.
        seed: Of the criterion `random`.
        surveys: Kept between runs on the same dense model and samples, so that gradients which
            two recipes need are taken once; their time counts for both.
        progress: Whether to draw progress bars on a terminal.

    Raises:
        ExciseError: Quantised layers, samples the model cannot read, or statistics that are not
            finite. The model may be pruned in part then: load it again.
    """
    started = time.perf_counter()
    view = ModelView.of(model)
    linears = view.layer_linears()
    for linear in linears.values():
        plain_linear(linear, view)
    if not samples:
        raise ExciseError("nothing to calibrate on: give at least one sample")
    check_length(samples, model.config)
    store = Progress(resume)
    store.check(f"{recipe} {seed} {batch_size} {fingerprint(samples)} {model_hash(model)}")
    job = _Job(view, samples, recipe, batch_size, device, seed, store, progress)
    job.surveys = {} if surveys is None else surveys
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        single = list(batches(samples, 1)) if recipe.tune else []
        dense = predictions(view, single)
        for step in range(recipe.steps):
            job.run(step)
        divergences = tune(view, single, dense, recipe.tune, progress=progress)
    except KeyboardInterrupt:
        if store.folder is None:
            raise
        kept = f"finished layers are kept in {store.folder}"
        raise KeyboardInterrupt(f"{kept}: repeat the command to go on") from None
    finally:
        for module, flag in training.items():
            module.training = flag
    mask = Mask("weights", {f"{path}.weight": keep.cpu() for path, keep in job.kept.items()})
    seconds = time.perf_counter() - started + job.borrowed
    return Pruned(mask, recipe, seconds, job.errors, divergences)


class _Job:
    """One run over one model, and what it has come to."""

    def __init__(
        self,
        view: ModelView,
        samples: Sequence[Sample],
        recipe: Recipe,
        batch_size: int,
        device: Any,
        seed: int,
        store: Progress,
        progress: bool,
    ):
        self.view, self.samples, self.recipe, self.store = view, samples, recipe, store
        self.batch_size, self.device, self.seed, self.progress = batch_size, device, seed, progress
        self.scope = parse_scope(recipe.scope)
        self.kept = {
            path: torch.ones_like(linear.weight, dtype=torch.bool)
            for path, linear in view.layer_linears().items()
        }
        self.errors: dict[str, float] = {}
        self.surveys: dict[tuple[str, ...], Survey] = {}
        self.borrowed = 0.0
        """Seconds that an earlier run spent on a survey this one used."""

    def run(self, step: int) -> None:
        """Go through all layers once, as far as an earlier run did not."""
        layers, every = self.view.layers, self.recipe.rescore or len(self.view.layers)
        done = [self.store.has_layer(step, index) for index in range(len(layers))]
        inputs = None if all(done) or not self.recipe.sees_inputs else self._inputs()
        found, choice = None, Choice({})
        name = f"step {step + 1} of {self.recipe.steps}: " if self.recipe.steps > 1 else ""
        bar = tqdm(total=len(layers), desc=f"{name}pruning", unit="layer",
                   disable=None if self.progress else True)  # fmt: skip
        with bar:
            for index, layer in enumerate(layers):
                if index % every == 0 and not all(done[index : index + every]):
                    found = self._survey(dense=not step and not index)
                    choice = self._decide(step, index, found)
                mine = linears_of(layer, self.view)
                with _on(layer.module, self.device):
                    weights = found.token_weights if found else None
                    seen = inputs.see(index, layer, mine, weights or None) if inputs else {}
                    if done[index]:
                        self.store.load_layer(step, index, mine, self.kept)
                    else:
                        for path, linear in mine.items():
                            self._prune(path, linear, seen.get(path), found, choice)
                        self.store.save_layer(step, index, mine, self.kept)
                    if inputs:
                        inputs.advance(index, layer)
                bar.update()

    def _inputs(self) -> Inputs:
        return Inputs(
            self.view,
            list(batches(self.samples, self.batch_size)),
            sequential=self.recipe.order == "sequential",
            gram=self.recipe.updates,
            device=self.device,
        )

    def _survey(self, dense: bool) -> Survey | None:
        needs, weigh = survey_needs(self.recipe), self.recipe.weigh_tokens
        if not needs and not weigh:
            return None
        key = (*sorted(needs), *(["token weights"] if weigh else []))
        if dense and key in self.surveys:
            self.borrowed += self.surveys[key].seconds
            return self.surveys[key]
        found = survey(
            self.view, self.samples, needs, batch_size=self.batch_size, weigh_tokens=weigh,
            progress=self.progress,
        )  # fmt: skip
        if dense:
            self.surveys[key] = found
        return found

    def _decide(self, step: int, first: int, found: Survey | None) -> Choice:
        """Settle what the layers from the first one on keep, so that all together meet the goal."""
        goal = self.recipe.goal * (step + 1) / self.recipe.steps
        left = {
            path: linear
            for layer in self.view.layers[first:]
            for path, linear in linears_of(layer, self.view).items()
        }
        total = sum(keep.numel() for keep in self.kept.values())
        gone = sum(int((~keep).sum()) for path, keep in self.kept.items() if path not in left)
        here = sum(linear.weight.numel() for linear in left.values())
        share = min(max((count_gone(goal, total) - gone) / here, 0.0), 1.0) if first else goal
        return decide(self.recipe, share, self.view.layers[first:], left, found, self.kept)

    def _prune(
        self,
        path: str,
        linear: nn.Linear,
        seen: LinearStatistics | None,
        found: Survey | None,
        choice: Choice,
    ) -> None:
        """Choose what one matrix keeps, update it, and write it into the model."""
        weight, keep = linear.weight.detach(), self.kept[path].to(linear.weight.device)
        statistics = _merged(path, seen, found, self.seed)
        if self.recipe.criterion == SPARSEGPT:
            assert statistics.gram is not None
            pattern = self.scope.size if self.scope.kind == "n:m" else None
            share = choice.shares[path] if pattern is None else pattern
            updated, keep = sparsegpt(
                weight, statistics.gram, share, damping=self.recipe.damp(0.01)
            )
        else:
            if path in choice.masks:
                keep = choice.masks[path].to(weight.device)
            else:
                scores = get_criterion(self.recipe.criterion).score(weight, statistics)
                keep = choice.keep(self.scope, path, scores.masked_fill(~keep, -torch.inf))
            updated = self._updated(weight, statistics.gram, keep)
        if statistics.gram is not None:
            self.errors[path] = reconstruction_error(weight, updated, statistics.gram)
            self.errors[path] /= statistics.tokens
        linear.weight.data.copy_(updated)
        self.kept[path] = keep

    def _updated(self, weight: Tensor, gram: Tensor | None, keep: Tensor) -> Tensor:
        if self.recipe.update == "none":
            return weight.masked_fill(~keep, 0.0)
        assert gram is not None
        if self.recipe.update == "obs":
            return obs(weight, gram, keep, damping=self.recipe.damp(0.01))
        return admm(
            weight, gram, keep, iterations=self.recipe.iterations, damping=self.recipe.damp(0.1)
        )


def _merged(
    path: str, seen: LinearStatistics | None, found: Survey | None, seed: int
) -> LinearStatistics:
    """Put together what the layer's own inputs and the whole model's gradients say."""
    whole = found.statistics[path] if found else LinearStatistics(0)
    mine = seen or whole
    inputs = {"input_square": mine.input_square, "input_sum": mine.input_sum, "gram": mine.gram}
    tokens = mine.tokens or whole.tokens
    return replace(whole, tokens=tokens, **inputs, name=path, seed=seed)


@contextmanager
def _on(module: nn.Module, device: Any) -> Iterator[None]:
    """Have a layer on a device for a while."""
    home = next(module.parameters()).device
    if device is not None and torch.device(device) != home:
        module.to(device)
    try:
        yield
    finally:
        module.to(home)
