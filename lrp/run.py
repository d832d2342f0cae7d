"""Score a whole reference set: batches, progress, resuming, several processes, a forecast."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.data import Batch, Sample, batches, check_length, fingerprint
from ..core.errors import ExciseError
from ..core.files.progress import Progress
from ..core.identity import identity_of
from ..core.memory import Forecast, available, held_with, resident
from ..core.provenance import KEY, Seen
from .fitter import RelevanceFitter
from .relevance import Relevance
from .targets import Target


_SAVE_EVERY = 30.0
"""Seconds between saves of a resumable run, at least; and 20 times what a save takes."""


def score_samples(
    model: Any,
    samples: Sequence[Sample] | Iterator[Batch],
    target: Target | str = "next-tokens",
    method: str = "lrp",
    *,
    batch_size: int = 8,
    resume: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> Relevance:
    """Score a model's components on samples; `excise.score` makes them of a source first.

    Under `accelerate launch` with several processes each scores its share of the samples, and
    every process returns the relevance of all. (An iterator of batches is scored as it is.)

    Args:
        model: A causal language model of a supported family.
        samples: Tokenised samples, or an iterator of ready batches.
        target: What is explained; see `RelevanceFitter`.
        method: How; see `METHODS`.
        batch_size: Samples per pass.
        resume: Folder for progress: an interrupted run goes on from there, and a finished one
            removes it. Needs samples, not an iterator.
        progress: Whether to draw a progress bar on a terminal.
        options: Those of `RelevanceFitter`.

    Returns:
        Means over all samples, with what is known of the texts behind them.

    Raises:
        ExciseError: As `RelevanceFitter`; or the progress folder is of another run.
    """
    fitter = RelevanceFitter(model, target, method, **options)
    if not isinstance(samples, Sequence):
        for batch in samples:
            fitter.update(batch)
        return fitter.result()
    check_length(samples, model.config)
    mine, kept = _my_share(samples), _Kept(Progress(_my_folder(resume)))
    if kept.folder:
        asked = {"method": method, "target": fitter.target_name, **options}
        kept.asked = {
            **identity_of(model), **asked, "data": [fingerprint(samples), fingerprint(mine)],
            "processes": _processes(),
        }  # fmt: skip
        kept.restore(fitter)
    _score_all(fitter, mine, batch_size, kept, progress)
    _merge(fitter)
    if fitter.n_samples != len(samples):
        raise ExciseError(f"{fitter.n_samples} of {len(samples)} samples were scored: score again")
    relevance = fitter.result()
    relevance.config["data"] = fingerprint(
        samples
    )  # whole: a batch has answers in all rows or none
    relevance.config[KEY] = Seen.by(samples).to_json()
    kept.progress.forget()
    return relevance


def _score_all(
    fitter: RelevanceFitter,
    samples: Sequence[Sample],
    batch_size: int,
    kept: "_Kept",
    progress: bool,
) -> None:
    saved, pause = time.monotonic(), _SAVE_EVERY
    bar = tqdm(
        total=len(samples),
        initial=fitter.n_samples,
        desc=f"scoring ({fitter.method_name})",
        unit="sample",
        disable=None if progress else True,
    )
    with bar, _interrupt_after_batch(kept.folder is not None) as interrupted:
        while fitter.n_samples < len(samples):
            batch = next(batches(samples[fitter.n_samples :], batch_size))
            fitter.update(batch)
            bar.update(len(batch))
            if kept.folder and (interrupted or time.monotonic() - saved > pause):
                started = time.monotonic()
                kept.save(fitter)
                saved = time.monotonic()
                pause = max(_SAVE_EVERY, 20 * (saved - started))
            if interrupted:
                done = f"{fitter.n_samples} of {len(samples)} samples are kept in {kept.folder}"
                raise KeyboardInterrupt(f"{done}: repeat the command to go on")


@contextmanager
def _interrupt_after_batch(wanted: bool) -> Iterator[list[int]]:
    """Collect the first Ctrl-C instead of raising it, so that no batch is half added and saved.

    A second one raises at once. Threads other than the main one cannot do this and need not.
    """
    pressed: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def remember(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class _Kept:
    """What was gathered so far, on disk; without a folder nothing is kept."""

    progress: Progress
    asked: dict[str, Any] = field(default_factory=dict)
    """All that the scores depend on."""

    @property
    def folder(self) -> Path | None:
        return self.progress.folder

    def save(self, fitter: RelevanceFitter) -> None:
        self.progress.keep("scores", self.asked, {"n_samples": fitter.n_samples}, fitter.state())

    def restore(self, fitter: RelevanceFitter) -> None:
        if found := self.progress.load("scores", self.asked):
            fitter.load_state([found[1]])


def _my_share(samples: Sequence[Sample]) -> Sequence[Sample]:
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1:
        return samples
    with state.split_between_processes(list(range(len(samples)))) as indices:
        return [samples[index] for index in indices]  # type: ignore[union-attr]


def _my_folder(folder: str | Path | None) -> Path | None:
    from accelerate import PartialState

    state = PartialState()
    if folder is None or state.num_processes == 1:
        return Path(folder) if folder else None
    return Path(f"{folder}.{state.process_index}")


def _merge(fitter: RelevanceFitter) -> None:
    """Give every process the scores of all, in the order of the samples."""
    from accelerate import PartialState
    from accelerate.utils import gather_object, reduce

    if PartialState().num_processes == 1:
        return
    mine = fitter.state()
    weights = {key: mine.pop(key) for key in list(mine) if key.startswith("weight/")}
    states: list[dict[str, Tensor]] = gather_object([mine])
    known = {key: tuple(t.shape) for found in gather_object([_shapes(weights)]) for key, t in found}
    for key, shape in sorted(known.items()):  # one reduction a matrix: no process holds them twice
        device = fitter.linears[key.removeprefix("weight/")].weight.device
        weight = weights[key] if key in weights else torch.zeros(shape, device=device)
        states[0][key] = reduce(weight, "sum")  # type: ignore[assignment]
    fitter.load_state([state for state in states if len(state["lengths"])])


def _shapes(weights: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(key, torch.empty(tensor.shape, device="meta")) for key, tensor in weights.items()]


def forecast(
    model: Any, samples: Sequence[Sample], batch_size: int, *, probe: bool = True, **options: Any
) -> Forecast:
    """Say what scoring will take, before it starts.

    Time is that of the faster of two passes over one batch, scaled to all samples; memory is
    counted from the model's shape, on top of what the process holds now.

    Args:
        model: The model.
        samples: Those to be scored.
        batch_size: Samples per pass.
        probe: Whether to time a batch. Without it `seconds` is 0 and the model is not run.
        options: Those of `RelevanceFitter`.
    """
    fitter = RelevanceFitter(model, **options)
    longest = max(len(sample.input_ids) for sample in samples)
    rows = min(batch_size, len(samples))
    seconds = 0.0
    if probe and not fitter.method.random:
        mine = -(-len(samples) // _processes())
        passes = []
        for _ in range(2):  # the first warms up, and either may be disturbed
            started = time.perf_counter()
            fitter.update(next(batches(samples, rows)))
            passes.append(time.perf_counter() - started)
        seconds = min(passes) * mine / rows
    activations = activation_bytes(fitter, rows * longest)
    scores = sum(linear.weight.numel() * 4 for linear in fitter.linears.values())
    if fitter.keep_samples:
        width = {"heads": fitter.view.n_heads, "neurons": fitter.view.d_mlp, "tokens": 0}
        layers = len(fitter.view.layers)
        scores += sum(width[c] for c in fitter.components) * layers * len(samples) * 4
    counts = {"samples": len(samples), "samples per pass": batch_size}
    return Forecast(held_with(model) + activations + scores, seconds, counts)


def choose_batch_size(model: Any, samples: Sequence[Sample], **options: Any) -> int:
    """Return the largest power of two up to 16 whose forecast fits in half of the free memory."""
    free = available()
    for batch_size in (16, 8, 4, 2):
        expected = forecast(model, samples, batch_size, probe=False, **options).peak - resident()
        if expected < free / 2:
            return batch_size
    return 1


def _processes() -> int:
    from accelerate import PartialState

    return PartialState().num_processes


def activation_bytes(fitter: RelevanceFitter, tokens: int) -> int:
    """Count what a backward pass holds: per layer what rules, taps and kernels save, and logits."""
    view = fitter.view
    size = view.embedding.weight.element_size()
    heads = view.n_heads * view.head_dim
    layer = 5 * heads + (4 if view.family.gated else 2) * view.d_mlp + 2 * view.d_model
    if fitter.linears:
        layer += 2 * view.d_model
    vocabulary = view.model.config.vocab_size
    if fitter.method.contribution is None:
        return tokens * (vocabulary + layer) * size
    logits = 4 if "next" in fitter.target_name or fitter.target_name == "continuation" else 2
    return tokens * (len(view.layers) * layer + logits * vocabulary) * size
