"""The circuit of a task, as one call: from a model and the name of a task to a tested circuit."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.loading import Loaded, LoadOptions, as_loaded
from ..core.memory import Forecast
from ..tasks.registry import get_task
from ..tasks.sources import Source
from .ablation import Ablation
from .exchange import read_eap_ig
from .find import search_circuit
from .graph import Graph
from .pairs import encode_pairs
from .search import Parts, Search, planned, prompts_in_parts


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..tasks.registry import Split
    from ..tasks.sources import Prompts
    from .pairs import Pairs

    Model = Loaded | PreTrainedModel | str | Path
    Tokenizer = PreTrainedTokenizerBase | None

ALL = 10**9
"""Of a caller's own prompts all are used: they are shared out, not drawn."""


def find_circuit(
    model: "Model",
    tokenizer: "Tokenizer" = None,
    *,
    task: str | None = None,
    prompts: "Prompts | None" = None,
    samples: int = 48,
    counterfactual: str | None = None,
    level: str = "nodes",
    method: str | None = None,
    scores: str | Path | None = None,
    rank: str = "signed",
    ablation: Ablation | None = None,
    faithfulness: float = 0.9,
    size: int | None = None,
    refine: bool = False,
    minimality: bool = False,
    controls: int = 5,
    seed: int = 0,
    batch_size: int = 16,
    allow_failing: bool = False,
    resume: str | Path | None = None,
    progress: bool = False,
    dry_run: bool = False,
    load_options: LoadOptions | None = None,
    tell: Callable[[Forecast], None] | None = None,
) -> Any:
    """Find the circuit of a task, and measure on held-out prompts how far it is one.

    Components are scored on one part of the prompts, the size is chosen on a second part, and
    everything that is reported is measured on a third, beside random circuits of the same size.

    Args:
        model: A model, or the name or folder of one; see `excise.core.loading.as_loaded`.
        tokenizer: The model's own; needed only beside a bare `PreTrainedModel`.
        task: A built-in task, as in `ioi`. Give this or `prompts`.
        prompts: Path of a JSONL file, or a list; at least eight, each with `clean`, `answer`,
            `wrong` and, but for zero ablation, `counterfactual`.
        samples: Prompts of a task to score; half as many choose the size, as many test it.
        counterfactual: Of a task; by default the task's first.
        level: `nodes` (heads and MLPs), `kv-groups`, `neurons`, `edges` or `weights`.
        method: A name of `CIRCUIT_METHODS`. By default `relp-ig`; `lrp` for weights and for
            prompts without counterfactuals.
        scores: JSON of EAP-IG or MIB, instead of a method.
        rank: `signed`, or `abs` for absolute values.
        ablation: What replaces components outside: `resample`, `mean` or `zero`. By default
            `resample`; `zero` for weights and for prompts without counterfactuals.
        faithfulness: The fewest components that reach it are chosen, from 0 to 1.
        size: So many components instead.
        refine: Make the circuit smaller, greedily. This takes minutes.
        minimality: Leave out each component once; one run for each.
        controls: Random circuits of the same size and profile beside it.
        seed: Of everything that is drawn.
        batch_size: Prompts per pass.
        allow_failing: Go on although the model itself does not do the task.
        resume: Folder for scores: a search that was interrupted goes on from there.
        progress: Whether to draw progress bars on a terminal.
        dry_run: Return the `Forecast` instead; no pass is made.
        load_options: How to load a model that is given by name.
        tell: Called with the forecast before the work starts.

    Returns:
        The `Circuit`, with its evidence under `config["metrics"]`.

    Raises:
        ExciseError: A source, model or name that cannot be used, before the model is loaded where
            that can be known; or the model fails the task.
    """
    for name, value in {"samples": samples, "batch_size": batch_size}.items():
        if value < 1:
            raise ExciseError(f"`{name}` is {value}: give at least 1")
    if (task is None) == (prompts is None):
        raise ExciseError("give one of `task` and `prompts`: excise ls tasks lists tasks")
    source = Source.of(task, prompts, samples=samples if prompts is None else ALL, seed=seed,
                       counterfactual=counterfactual)  # fmt: skip
    paired = prompts is None or all(one.counterfactual is not None for one in source.given)
    plain = level == "weights" or not paired
    search = Search(
        level=level,
        method=method or ("lrp" if plain else "relp-ig"),
        rank=rank,
        ablation=ablation or ("zero" if plain else "resample"),
        faithfulness=faithfulness,
        size=size,
        refined=refine,
        minimality=minimality,
        controls=controls,
        seed=seed,
    )
    loaded = as_loaded(model, tokenizer, load_options=load_options)
    parts = _parts(source, loaded)
    given = None
    if scores is not None:
        given = read_eap_ig(scores, Graph.of(ModelView.of(loaded.model)))
    expected = planned(loaded.model, parts, search, batch_size)
    if tell:
        tell(expected)
    if dry_run:
        return expected
    return search_circuit(
        loaded.model,
        parts,
        search,
        task=Path(source.name).name if task is None else task,
        tokenizer=loaded.tokenizer,
        batch_size=batch_size,
        scores=given,
        allow_failing=allow_failing,
        resume=None if resume is None else Path(resume),
        progress=progress,
        made_from=_made_from(source, scores),
    )


def _parts(source: Source, loaded: Loaded) -> Parts:
    """Read or make the prompts of all three parts, and tokenise them."""
    tokenizer, n = loaded.tokenizer, source.n
    if source.kind == "prompts":
        return prompts_in_parts(encode_pairs(tokenizer, source.prompts(tokenizer)), source.seed)

    def part(split: "Split", n: int) -> "Pairs":
        return encode_pairs(tokenizer, replace(source, n=n).prompts(tokenizer, split))

    return Parts(part("train", n), part("validation", max(2, n // 2)), part("test", n))


def _made_from(source: Source, scores: str | Path | None) -> dict[str, Any]:
    """Return where the prompts and the scores are from, for the circuit to say."""
    found: dict[str, Any] = {"source": str(source)}
    if source.kind == "task":
        first = get_task(source.name).counterfactuals[0]
        found["counterfactual"] = source.counterfactual or first
    if scores is not None:
        digest = hashlib.sha256(Path(scores).read_bytes()).hexdigest()[:16]
        found["scores"] = {"file": str(scores), "sha256": digest}
    return found
