"""Take units out of a model, from a name or a loaded model to a result that can be saved."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...core.data import Sample, batches
from ...core.errors import ExciseError, unknown_name
from ...core.export import note, record
from ...core.families import ModelView
from ...core.loading import Loaded, as_loaded
from ...core.memory import peak, readable
from ...core.provenance import Seen
from ...lrp.relevance import Relevance
from ..calibration import Calibration, Texts
from ..mask import RANKS, Mask, Rank, check_effect, check_sparsity, select_overall
from ..model import zero_by
from ..pruned import PrunedModel, PruningForecast
from .compensation import check_biases, mean_inputs_of
from .shrink import STRUCTURED, StructuredComponent, check_shrink, select_uniform, shrink
from .size import parameters_left, parameters_of
from .units import forecast_units, get_unit_criterion, unit_scores


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_UNIT_CRITERION = {"neurons": "lrp", "heads": "lrp", "layers": "block-influence"}
"""How units are scored unless the caller says otherwise; of neurons, the best measured."""

log = logging.getLogger(__name__)


def shrink_model(
    model: "Loaded | PreTrainedModel | str | os.PathLike[str]",
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    sparsity: float | None = None,
    *,
    component: StructuredComponent = "neurons",
    criterion: str | None = None,
    relevance: Relevance | str | os.PathLike[str] | None = None,
    rank: Rank = "abs",
    other_model: bool = False,
    compensate: bool = False,
    zero: bool = False,
    calibration: Texts = "builtin",
    samples: int = 32,
    length: int = 512,
    batch_size: int = 4,
    seed: int = 0,
    dry_run: bool = False,
    progress: bool = False,
) -> Any:
    """Take neurons, heads or layers out of a model, which is smaller afterwards. In place.

    A model that is handed over loaded is changed, and is `result.model`: copy it before where the
    dense one is needed. All that can be refused is refused before anything is scored.

    Args:
        model: A model of transformers, a `Loaded`, a hub id or a folder.
        tokenizer: Of a model of transformers.
        sparsity: Share of the units that goes, as in 0.2: the same number in each layer, or with
            `zero` compared over all layers.
        component: `neurons` (hidden units of the MLPs), `heads` (whole KV groups) or `layers`.
        criterion: A name of `UNIT_CRITERIA`; None takes `DEFAULT_UNIT_CRITERION`.
        relevance: Scores of heads or neurons, or their folder, which choose in place of it.
        rank: Of the relevance: `abs` or `signed`.
        other_model: Whether a relevance of other weights is used all the same.
        compensate: Whether the mean of what is removed goes into a bias.
        zero: Whether units are set to zero where they are, and nothing is removed.
        calibration: A text file, a datasets id, `builtin`, `self` (the model writes), or texts.
        samples: Of the calibration.
        length: Tokens per sample.
        batch_size: Samples per pass.
        seed: Of the calibration and of the criterion `random`.
        dry_run: Whether to return a forecast instead, and leave the model as it is.
        progress: Whether to draw progress bars on a terminal.

    Returns:
        The smaller model with its mask and provenance; or with `dry_run` a `PruningForecast`.

    Raises:
        ExciseError: Names that are not known, what no plain config can say, or as `as_loaded`,
            `Calibration`, `unit_scores` and `shrink`.
    """
    if component not in STRUCTURED:
        raise unknown_name("component", component, STRUCTURED)
    if rank not in RANKS:
        raise unknown_name("rank", rank, RANKS)
    if sparsity is None:
        raise ExciseError("say how much goes: `sparsity` 0.2")
    check_sparsity(sparsity)
    if zero and (compensate or component == "layers"):
        raise ExciseError(
            "`zero` removes nothing: leave `compensate` out, and take heads or neurons"
        )
    folder = "" if isinstance(relevance, Relevance | None) else os.fspath(relevance)
    if relevance is not None and zero:
        return zero_by(model, tokenizer, sparsity, relevance, component, rank, other_model, dry_run)  # type: ignore[arg-type]
    if folder:
        relevance = Relevance.from_pretrained(folder)
    assert relevance is None or isinstance(relevance, Relevance)
    name = "random" if relevance else criterion or DEFAULT_UNIT_CRITERION[component]
    chosen = get_unit_criterion(name, component)
    needed = chosen.needs_data or compensate
    source = Calibration(calibration, samples, length, seed) if needed else None
    loaded = as_loaded(model, tokenizer)
    if relevance and not other_model:
        relevance.check_model(loaded.model)
    view, shown = ModelView.of(loaded.model), folder or ("relevance" if relevance else name)

    def choose(by: str, data: Sequence[Sample]) -> Mask:
        if relevance:
            scores, seen = relevance.get(component), relevance.seen
            scores = scores if rank == "signed" else scores.abs()
        else:
            scores = unit_scores(
                view.model, data, component, by, batch_size=batch_size, seed=seed, progress=progress
            )
            seen = Seen.by(data)
        if zero:
            assert component != "layers"
            return select_overall(scores, component, sparsity, seen=seen)
        return select_uniform(scores, component, sparsity, view, seen=seen)

    mask, by = choose("random", []), f" by {shown}"  # how many go is known before which
    check_effect(mask, sparsity)
    result: dict[str, Any] = {
        "components": component, "asked": sparsity, "sparsity": mask.sparsity,
        **({} if relevance else {"criterion": name}),
    }  # fmt: skip
    if not zero:
        check_shrink(view, mask)
        if compensate:
            check_biases(view, component)
        before, after = parameters_of(view), parameters_left(view, mask, compensate)
        result["parameters"] = {"before": before, "after": after}
        by += f": {_short(before)} -> {_short(after)} parameters"
    elif not chosen.comparable:
        log.warning("`zero` compares layers, and %s means another thing in each", name)
    data = source.samples(loaded, dry_run, progress) if source else []
    passes = name if chosen.needs_data else "wanda" if compensate else "random"
    expected = forecast_units(loaded.model, data, component, passes, batch_size)
    log.info("%s: %s", shown, "scored before" if relevance else chosen.summary)
    log.info("%s: %s", source or "no calibration", expected)
    if dry_run:
        return PruningForecast(
            expected.peak, expected.seconds, expected.counts, expected.parts, result, f"{mask}{by}"
        )
    started = time.perf_counter()
    mask = choose(name, data)
    if zero:
        mask.apply_(loaded.model)
    else:
        means = mean_inputs_of(view, batches(data, batch_size), component) if compensate else None
        shrink(loaded.model, mask, means)
    seconds = time.perf_counter() - started
    log.info("took %.1f s, peak memory %s", seconds, readable(peak()))
    more: dict[str, Any] = {"rank": rank, "relevance": relevance.config} if relevance else {}
    more |= {"zero": zero, "compensate": compensate, "seed": seed}
    if source:
        more["calibration"] = str(source)
        mask = replace(mask, seen=mask.seen | Seen.by(data))
    made = record(loaded, {"verb": "prune", **result, **more}, {"mask": mask})
    note(loaded, made)
    return PrunedModel(loaded, mask, None, made, result, expected, seconds, peak(), by)


def _short(number: int) -> str:
    """Render a number of parameters, as in `134.5 M`."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
