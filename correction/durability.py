"""Whether a corrected model stays corrected: in other number formats, and after fine-tuning.

The edit is made first and the model converted or trained afterwards, as a user would. The unedited
model goes the same way, so the difference is what is left of the edit.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from ..core.data import Sample, batches
from ..core.errors import ExciseError, first_line, look_up
from ..core.families import family_of
from ..core.files.output import scratch_folder
from ..core.gguf import cache_folder
from ..core.loading import Loaded, LoadOptions, load_model
from ..core.statistics import Measure
from ..edits.edit import Edit
from ..eval.outcome import Metric
from ..eval.run import Evaluation, evaluate
from .data.target import Judgement
from .dose import PERPLEXITY


STEPS, RATE, BATCH = 20, 1e-5, 4
"""Of the fine-tuning: AdamW steps, learning rate, samples per step."""


@dataclass(frozen=True)
class Durability:
    """One form of the model."""

    form: str
    gain: Measure | None
    """Share of the behaviour that is gone, edited against unedited, both in this form."""
    cost: Measure | None
    """Relative change of perplexity, likewise."""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found: dict[str, Any] = {"form": self.form, "note": self.note}
        for name in ("gain", "cost"):
            measure: Measure | None = getattr(self, name)
            found[name] = measure.value if measure else None
            found[f"{name}_ci"] = list(measure.ci) if measure else None
        return found


def durability(
    loaded: Loaded,
    edit: Edit,
    metrics: Sequence[Metric],
    judge: Judgement,
    benign: Sequence[Sample],
    forms: Sequence[str] | None = None,
    *,
    cache: Path | None = None,
    progress: bool = False,
) -> list[Durability]:
    """Measure what is left of an edit in each form.

    Args:
        loaded: The unedited model, which is left as it was.
        edit: What was done.
        metrics: Behaviour and perplexity on test data.
        judge: What says how much of the behaviour there is.
        benign: What is fine-tuned on.
        forms: Names of `FORMS`; all if None.
        cache: Folder of rows measured before; see `evaluate`.
        progress: Whether to draw progress bars on a terminal.

    Returns:
        A row per form; one that cannot be made here says why.

    Raises:
        ExciseError: An unknown form.
    """
    makers = {form: look_up("form", form, FORMS) for form in (FORMS if forms is None else forms)}
    found = []
    for form, make in makers.items():
        pair: list[Evaluation] = []
        try:
            for tried in (Edit(), edit):
                with tried.applied(loaded.model):
                    converted = make(loaded, benign)
                with _quiet():
                    pair.append(evaluate(converted, metrics, cache=cache, progress=progress))
                del converted
        except (ExciseError, RuntimeError) as error:  # as of kernels that this machine lacks
            found.append(Durability(form, None, None, first_line(error)))
            continue
        cost = PERPLEXITY.compare(*pair).relative
        found.append(Durability(form, judge.gain(pair[0], pair[1]), cost))
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep bitsandbytes from telling at every single pass that it casts."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _cast(loaded: Loaded, _benign: Sequence[Sample], dtype: torch.dtype) -> Loaded:
    model: Any = deepcopy(loaded.model)
    model.to(dtype)
    return Loaded(model, loaded.tokenizer, f"{loaded.name} {dtype}")


def _quantised(loaded: Loaded, _benign: Sequence[Sample], **options: Any) -> Loaded:
    if find_spec("bitsandbytes") is None:
        raise ExciseError("needs bitsandbytes: pip install 'excise[bnb]'")
    parent = cache_folder()
    parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(parent) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        return load_model(str(folder), LoadOptions(**options))


def _finetuned(loaded: Loaded, benign: Sequence[Sample]) -> Loaded:
    """Train a copy on benign text, all weights, in float32."""
    model = deepcopy(loaded.model).float().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    explicit = family_of(model).passes_position_ids
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    parts = list(batches(benign, BATCH))
    for step in range(STEPS):
        batch = parts[step % len(parts)].to(model.device)
        with torch.enable_grad():
            logits = model(**batch.model_inputs(explicit)).logits[:, :-1]
            wanted = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)[:, 1:]
            cross_entropy(logits.flatten(0, 1).float(), wanted.flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
    return Loaded(model.eval(), loaded.tokenizer, f"{loaded.name} fine-tuned")


FORMS: dict[str, Callable[[Loaded, Sequence[Sample]], Loaded]] = {
    "bfloat16": partial(_cast, dtype=torch.bfloat16),
    "int8": partial(_quantised, load_in_8bit=True),
    "int4": partial(_quantised, load_in_4bit=True),
    "fine-tuned": _finetuned,
}
"""What may become of a model after it was corrected."""
