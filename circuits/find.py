"""From prompts in three parts to a circuit with its evidence."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.files.json_text import finite
from ..core.files.progress import Progress
from ..core.identity import identity_of, model_hash
from ..core.provenance import KEY, Seen
from ..lrp.scope import unreached
from .ablation import Ablator
from .attention_patterns import attention_examples
from .attribution import attribute
from .circuit import Circuit, Scores, bootstrap
from .discovery import Choice, by_faithfulness, by_size, refine
from .evidence import Evidence, stability
from .faithfulness import Trial
from .levels import Level, Ranking, Shape, get_level
from .methods import CircuitMethod, get_method
from .pairs import Pairs
from .scores import Attribution
from .search import Parts, Search
from .weights import weight_scores
from .writers import weights_are_readable


PICTURED = 16
"""Prompts behind the edges that are drawn between the nodes of a circuit of nodes."""


def search_circuit(
    model: Any,
    parts: Parts,
    search: Search | None = None,
    *,
    task: str = "prompts",
    tokenizer: Any = None,
    batch_size: int = 16,
    scores: Attribution | None = None,
    allow_failing: bool = False,
    resume: Path | None = None,
    progress: bool = False,
    made_from: Mapping[str, Any] | None = None,
) -> Circuit:
    """Find the circuit of a task, and measure on held-out prompts how far it is one.

    Args:
        model: A causal language model of a supported family.
        parts: Prompts to score, to choose and to test on.
        search: How; default: nodes by RelP along a path, faithfulness 0.9 under resample ablation.
        task: A name for what is looked at.
        tokenizer: Decodes the example prompts of the page; without one there are none.
        batch_size: Prompts per pass.
        scores: Ready ones, such as another tool's, instead of those of the search's method.
        allow_failing: Go on though the model itself does not do the task.
        resume: Folder in which scores are kept until the circuit is there, so that a search that
            was stopped while choosing or testing need not score again.
        progress: Whether to draw progress bars on a terminal.
        made_from: What else the circuit shall say of where its prompts and scores are from; JSON
            values by names of their own, such as `source`.

    Raises:
        ExciseError: The model fails the task, or as `attribute` and `by_faithfulness`.
    """
    search = search or Search()
    view = ModelView.of(model)
    level, method = get_level(search.level), get_method(search.method)
    if search.ablation != "zero" and parts.test.counterfactual is None:
        raise ExciseError(
            f"ablation {search.ablation!r} needs counterfactual prompts: add them, or use 'zero'"
        )
    for pairs in vars(parts).values():
        pairs.check(model.config)
    test = Trial(Ablator(model, parts.test, search.ablation, parts.train, batch_size), level)
    check_task(test, task, allow_failing)
    all_scores: dict[str, Scores] = {}
    resampled = None
    if level.name == "weights":  # sums over prompts: one value per weight is all there is
        mean = weight_scores(model, parts.train, search.method, batch_size, search.seed)
    else:
        found = scores or scored(model, parts.train, search, batch_size, resume, progress)
        all_scores[level.name], resampled = bootstrap(
            _scores(Shape.of(view), found, level), seed=search.seed
        )
        if level.name != "nodes" and found.heads is not None:
            all_scores["nodes"], _ = bootstrap(found.nodes, seed=search.seed)
        mean = all_scores[level.name].mean
    choosing = Trial(
        Ablator(model, parts.validation, search.ablation, parts.train, batch_size), level
    )
    chosen = choose(choosing, mean, search, method, progress)
    if not bool(chosen.any()):
        more = "faithfulness" if search.size is None else "size"
        raise ExciseError(f"no component is left in the circuit: ask for a larger --{more}")
    evidence = Evidence(test, model, parts, search, batch_size, progress)
    metrics = evidence.measured(chosen, mean)
    if resampled is not None:
        metrics["stability"] = stability(resampled, int(chosen.sum()), search.rank)
    drawable = scores is None and not method.random and not method.exact
    drawable = drawable and weights_are_readable(view)
    if level.name in ("nodes", "kv-groups") and drawable:
        drawn = parts.train[:PICTURED]  # for the lines between the nodes on the page
        at_prompts = replace(method, points=())
        edges = attribute(
            model, drawn, at_prompts, nodes=False, edges=True, batch_size=batch_size
        ).edges
        assert edges is not None
        all_scores["edges"], _ = bootstrap(edges, seed=search.seed)
    config = {
        "model": model.config.name_or_path or view.family.name,
        "model_hash": model_hash(model),
        "family": view.family.name,
        "dtype": str(view.embedding.weight.dtype).removeprefix("torch."),
        "shape": [len(view.layers), view.n_heads, view.n_kv_heads, view.d_mlp],
        "d_model": view.d_model,
        "matrices": Shape.of(view).matrices if level.name == "weights" else (),
        "task": task,
        **asdict(search),
        "method": search.method if scores is None else "given scores",
        "samples": {name: len(pairs) for name, pairs in vars(parts).items()},
        "data": {name: pairs.fingerprint for name, pairs in vars(parts).items()},
        "made_from": dict(made_from or {}),
        KEY: Seen.by((*parts.train.clean, *parts.validation.clean)).to_json(),
        "warnings": [*caveats(view, level, None if scores else method), *evidence.warnings],
        "metrics": finite(metrics),
    }
    circuit = Circuit(config, chosen, all_scores)
    if tokenizer is not None:
        examples = attention_examples(model, tokenizer, parts.test, circuit.nodes())
        circuit.examples.extend(examples)
    Progress(resume).forget()
    return circuit


def caveats(view: ModelView, level: Level, method: CircuitMethod | None) -> list[str]:
    """Say which components a method gives no scores, by its definition; ready scores have none."""
    rules = method.rules if method else None
    if method is None or level.name != "edges" or not unreached(rules, view.family):
        return []
    return [
        f"{method.name} holds attention patterns constant: edges into queries and keys score 0, "
        "and go by position among each other"
    ]


def scored(
    model: Any, pairs: Pairs, search: Search, batch_size: int, resume: Path | None, progress: bool
) -> Attribution:
    """Score the components, or read the scores of a search that was stopped.

    Raises:
        ExciseError: The folder holds the scores of another search.
    """
    level, method = get_level(search.level), get_method(search.method)
    asked = {
        **identity_of(model), "level": level.name, "method": str(method), "seed": search.seed,
        "data": pairs.fingerprint,
    }  # fmt: skip

    def make() -> Attribution:
        return attribute(
            model, pairs, method, **wanted(level, method), batch_size=batch_size, seed=search.seed,
            progress=progress,
        )  # fmt: skip

    def pack(found: Attribution) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, {name: t for name, t in vars(found).items() if t is not None}

    kept = Progress(resume)
    return kept.part("scores", asked, make, pack, lambda _, tensors: Attribution(**tensors))


def wanted(level: Level, method: CircuitMethod) -> dict[str, bool]:
    """Return what to score: the grain, and nodes beside it where they come for free."""
    return {
        "nodes": level.name in ("nodes", "kv-groups") or not method.exact,
        "neurons": level.name == "neurons",
        "edges": level.name == "edges",
    }


def check_task(trial: Trial, task: str, allow_failing: bool) -> None:
    """Refuse a task that the model does not do, since there is no circuit of it to find.

    Raises:
        ExciseError: The 95 % interval of its accuracy holds a half, and failing is not allowed.
    """
    accuracy = trial.accuracy(trial.full)
    if accuracy.ci[0] <= 0.5 and not allow_failing:
        raise ExciseError(
            f"the model does not do {task}: it prefers the right answer on {accuracy} of "
            f"{accuracy.n} prompts: choose another task, or go on with --allow-failing"
        )


def choose(
    trial: Trial, scores: Tensor, search: Search, method: CircuitMethod, progress: bool = False
) -> Choice:
    """Choose the circuit by size, or by faithfulness on validation prompts, refined if asked."""
    ranking = Ranking(scores, search.rank)
    if search.size is not None:
        return by_size(trial, ranking, search.size)
    chosen = by_faithfulness(trial, ranking, search.faithfulness)
    if search.refined:
        rules = method.rules or "relp"
        return refine(trial, chosen, search.faithfulness, rules, progress=progress)
    return chosen


def _scores(shape: Shape, found: Attribution, level: Level) -> Tensor:
    samples = level.scores(shape, found)
    if samples is None:
        raise ExciseError(f"there are no scores of {level.name}: look at another grain")
    return samples


def as_mean(model: Any, found: Attribution, level: Level) -> Tensor:
    """Return the mean scores of a grain's components, (components,)."""
    return _scores(Shape.of(ModelView.of(model)), found, level).float().mean(0)
