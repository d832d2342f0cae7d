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
from ..core.errors import ExciseError, first_line, shown
from ..core.families import ModelView, plain_linear
from ..core.identity import identity_of
from ..core.loading import check_device
from ..core.provenance import Seen
from .calibrate import passes, survey
from .choice import Choice, check_fit, decide, linears_of, survey_needs
from .criteria import get_criterion
from .inputs import Inputs
from .mask import Mask
from .packed import PackedMasks
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
    """Of the matrices that were updated in this run, by path: squared error of the outputs per
    token, on the inputs of the pruned prefix."""
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
        progress: Whether to draw progress bars on a terminal.

    Raises:
        ExciseError: Quantised layers, a pattern that does not fit them, samples the model cannot
            read, a device that is not there or too small, or statistics that are not finite. The
            model may be pruned in part then: load it again.
    """
    started = time.perf_counter()
    view = ModelView.of(model)
    for linear in view.layer_linears().values():
        plain_linear(linear, view)
    check_fit(recipe, view)
    if not samples:
        raise ExciseError("nothing to calibrate on: give at least one sample")
    check_length(samples, model.config)
    _check_device(device)
    store = Progress(resume)
    if resume is not None:
        store.check(
            {**identity_of(model), **recipe.to_json(), "seed": seed, "batch size": batch_size,
             "data": fingerprint(samples)}
        )  # fmt: skip
    job = _Job(view, samples, recipe, batch_size, device, seed, store, progress)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        single = list(batches(samples, 1)) if recipe.tune else []
        dense = predictions(view, single)
        for step in range(recipe.steps):
            job.run(step)
        cut = not all(bool(keep.all()) for keep in job.kept.values())
        divergences = tune(view, single, dense, recipe.tune * cut, progress=progress)
    except KeyboardInterrupt:
        if resume is None:
            raise
        kept = f"finished layers are kept in {resume}"
        raise KeyboardInterrupt(f"{kept}: repeat the command to go on") from None
    except torch.OutOfMemoryError as error:
        gradients = passes(survey_needs(recipe)) or recipe.tune
        more = ", or a recipe without gradients, as wanda-admm" if gradients else ""
        raise ExciseError(
            f"out of memory ({first_line(error)}): use a smaller --batch-size or --length{more}"
        ) from None
    finally:
        for module, flag in training.items():
            module.training = flag
    keep = PackedMasks()
    for path in list(job.kept):
        keep[f"{path}.weight"] = job.kept.pop(path)
    mask = Mask("weights", keep, Seen.by(samples))
    return Pruned(mask, recipe, time.perf_counter() - started, job.errors, divergences)


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
        self.kept = PackedMasks()
        for path, linear in view.layer_linears().items():
            self.kept[path] = torch.ones(linear.weight.shape, dtype=torch.bool)
        self.statistics: dict[str, LinearStatistics] = {}
        self.errors: dict[str, float] = {}

    def run(self, step: int) -> None:
        """Go through all layers once, as far as an earlier run did not."""
        layers, every = self.view.layers, self.recipe.rescore or len(self.view.layers)
        done = [self.store.has_layer(step, index) for index in range(len(layers))]
        inputs = None if all(done) or not self.recipe.sees_inputs else self._inputs()
        choice = Choice()
        name = f"step {step + 1} of {self.recipe.steps}: " if self.recipe.steps > 1 else ""
        bar = tqdm(total=len(layers), desc=f"{name}pruning", unit="layer",
                   disable=None if self.progress else True)  # fmt: skip
        with bar:
            for index, layer in enumerate(layers):
                if index % every == 0 and not all(done[index : index + every]):
                    choice = self._choice(step, index)
                mine, seen = linears_of(layer, self.view), {}
                with _on(layer.module, self.device):
                    if inputs and not done[index]:
                        seen = inputs.see(index, layer, mine)
                    if inputs:
                        inputs.advance(index, layer, pruned=False)
                    if done[index]:
                        self.store.load_layer(step, index, mine, self.kept)
                    else:
                        for path, linear in mine.items():
                            self._prune(path, linear, seen.get(path), choice)
                        self.store.save_layer(step, index, mine, self.kept)
                    if inputs:
                        inputs.advance(index, layer, pruned=True)
                bar.update()

    def _inputs(self) -> Inputs:
        return Inputs(
            self.view,
            list(batches(self.samples, self.batch_size)),
            sequential=self.recipe.order == "sequential",
            gram=self.recipe.updates,
            device=self.device,
        )

    def _choice(self, step: int, first: int) -> Choice:
        """Survey the model as it is, and settle what the layers from the first one on keep."""
        recipe, needs = self.recipe, survey_needs(self.recipe)
        self.statistics = {}  # before new ones take their room
        found = {path: LinearStatistics(0) for path in self.kept}
        if needs:
            found = survey(
                self.view, self.samples, needs, batch_size=self.batch_size, progress=self.progress
            )
        self.statistics = {
            path: replace(each, name=path, seed=self.seed) for path, each in found.items()
        }
        left = {
            path: linear
            for layer in self.view.layers[first:]
            for path, linear in linears_of(layer, self.view).items()
        }
        share = self._share(recipe.goal * (step + 1) / recipe.steps, left)
        choice = decide(recipe, share, self.view.layers[first:], left, self.statistics, self.kept)
        if recipe.criterion == SPARSEGPT or not needs & set(get_criterion(recipe.criterion).needs):
            self.statistics = {  # budgets are settled: what they needed can go
                path: LinearStatistics(0, name=path, seed=self.seed) for path in self.statistics
            }
        return choice

    def _share(self, goal: float, left: Mapping[str, nn.Linear]) -> float:
        """Return the share of what is left that has to go, so that all together meet the goal."""
        if len(left) == len(self.kept):
            return goal
        total = sum(keep.numel() for keep in self.kept.values())
        gone = sum(int((~keep).sum()) for path, keep in self.kept.items() if path not in left)
        share = (count_gone(goal, total) - gone) / sum(
            linear.weight.numel() for linear in left.values()
        )
        return min(max(share, self.recipe.floor), self.recipe.ceiling)

    def _prune(
        self, path: str, linear: nn.Linear, seen: LinearStatistics | None, choice: Choice
    ) -> None:
        """Choose what one matrix keeps, update it, and write it into the model."""
        weight, recipe = linear.weight.detach(), self.recipe
        statistics = _merged(self.statistics[path], seen)
        if recipe.criterion == SPARSEGPT:
            pattern = self.scope.size if self.scope.kind == "n:m" else choice.shares[path]
            assert statistics.gram is not None
            assert pattern is not None
            updated, keep = sparsegpt(weight, statistics.gram, pattern, damping=recipe.damp(0.01))
        else:
            if path in choice.masks:
                keep = choice.masks[path].to(weight.device)
            else:
                scores = get_criterion(recipe.criterion).score(weight, statistics)
                gone = ~self.kept[path].to(weight.device)
                keep = choice.keep(self.scope, path, scores.masked_fill(gone, -torch.inf))
            updated = _updated(recipe, weight, statistics.gram, keep)
        if statistics.gram is not None:
            error = reconstruction_error(weight, updated, statistics.gram)
            self.errors[path] = error / statistics.tokens
        linear.weight.data.copy_(updated)
        self.kept[path] = keep


def _updated(recipe: Recipe, weight: Tensor, gram: Tensor | None, keep: Tensor) -> Tensor:
    """Return the weights that stay, updated, and zeros."""
    if recipe.update == "none":
        return weight.masked_fill(~keep, 0.0)
    assert gram is not None
    if recipe.update == "obs":
        return obs(weight, gram, keep, damping=recipe.damp(0.01))
    return admm(weight, gram, keep, iterations=recipe.iterations, damping=recipe.damp(0.1))


def _merged(whole: LinearStatistics, seen: LinearStatistics | None) -> LinearStatistics:
    """Put together what the whole model's gradients and the layer's own inputs say."""
    if seen is None:
        return whole
    return replace(
        whole, tokens=seen.tokens, input_square=seen.input_square, input_sum=seen.input_sum,
        gram=seen.gram,
    )  # fmt: skip


def _check_device(device: Any) -> None:
    if device is None:
        return
    try:
        check_device(device)
    except ExciseError as error:
        raise ExciseError(
            f"layers cannot be computed on {shown(str(device))} ({error}): "
            "give --layer-device cpu or cuda:0, or leave it out"
        ) from error


@contextmanager
def _on(module: nn.Module, device: Any) -> Iterator[None]:
    """Have a layer on a device for a while.

    Its weights come back to where they were, which may be a mapped file.
    """
    homes = [(parameter, parameter.data) for parameter in module.parameters()]
    if device is not None:
        module.to(device)
    try:
        yield
    finally:
        for parameter, home in homes:
            if parameter.data_ptr() != home.data_ptr():
                home.copy_(parameter.data)
                parameter.data = home
        module.to(homes[0][1].device)  # buffers
