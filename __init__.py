"""Find the circuit, cut it, prove it: relevance, pruning and correction of Llama and OPT.

Importing this package loads no torch: public names are looked up when first used.

>>> import excise
>>> sorted(excise.__all__)[:3]
['Attribution', 'Batch', 'Circuit']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .circuits.attribution import attribute
    from .circuits.circuit import Circuit
    from .circuits.find import find_circuit
    from .circuits.pairs import Pairs, encode_pairs
    from .circuits.scores import Attribution
    from .circuits.search import Parts, Search
    from .circuits.testbed.planted import Planted, planted
    from .core.data import Batch, Prompt, Sample, collate, encode_prompts, encode_texts
    from .core.errors import ExciseError
    from .core.families import FAMILIES, Family, ModelView
    from .core.generation import Decoding
    from .core.loading import load_model
    from .eval.choice import TaskAccuracy, choice_accuracy
    from .eval.compare import compare
    from .eval.gate import check_gate
    from .eval.perplexity import Perplexity, perplexity
    from .eval.policy import read_policy
    from .eval.repetition import Repetition
    from .eval.report import Report
    from .eval.run import evaluate
    from .eval.scorers import get_scorer
    from .eval.toxicity import Toxicity
    from .lrp.fitter import RelevanceFitter
    from .lrp.relevance import Relevance
    from .lrp.run import forecast, score
    from .lrp.scope import LRPScope
    from .prune.compare import compare_recipes
    from .prune.mask import Mask, select
    from .prune.recipe import Recipe, get_recipe
    from .prune.run import prune_weights
    from .prune.structured.shrink import select_uniform, shrink
    from .prune.structured.units import unit_scores
    from .tasks.ioi import ioi_prompts
    from .tasks.registry import task_prompts

__version__ = "0.1.0"

_HOME = {
    "Attribution": "circuits.scores",
    "attribute": "circuits.attribution",
    "Circuit": "circuits.circuit",
    "find_circuit": "circuits.find",
    "Pairs": "circuits.pairs",
    "encode_pairs": "circuits.pairs",
    "Parts": "circuits.search",
    "Search": "circuits.search",
    "task_prompts": "tasks.registry",
    "Planted": "circuits.testbed.planted",
    "planted": "circuits.testbed.planted",
    "Batch": "core.data",
    "Decoding": "core.generation",
    "ExciseError": "core.errors",
    "FAMILIES": "core.families",
    "Family": "core.families",
    "LRPScope": "lrp.scope",
    "Mask": "prune.mask",
    "ModelView": "core.families",
    "Perplexity": "eval.perplexity",
    "Prompt": "core.data",
    "Recipe": "prune.recipe",
    "Relevance": "lrp.relevance",
    "RelevanceFitter": "lrp.fitter",
    "Repetition": "eval.repetition",
    "Report": "eval.report",
    "Sample": "core.data",
    "TaskAccuracy": "eval.choice",
    "Toxicity": "eval.toxicity",
    "check_gate": "eval.gate",
    "choice_accuracy": "eval.choice",
    "collate": "core.data",
    "compare": "eval.compare",
    "encode_prompts": "core.data",
    "encode_texts": "core.data",
    "evaluate": "eval.run",
    "get_scorer": "eval.scorers",
    "ioi_prompts": "tasks.ioi",
    "load_model": "core.loading",
    "perplexity": "eval.perplexity",
    "read_policy": "eval.policy",
    "forecast": "lrp.run",
    "score": "lrp.run",
    "select": "prune.mask",
    "compare_recipes": "prune.compare",
    "get_recipe": "prune.recipe",
    "prune_weights": "prune.run",
    "select_uniform": "prune.structured.shrink",
    "shrink": "prune.structured.shrink",
    "unit_scores": "prune.structured.units",
}

__all__ = [  # noqa: RUF022  (grouped by room)
    "Batch", "Prompt", "Sample", "collate", "encode_prompts", "encode_texts",
    "ExciseError",
    "FAMILIES", "Family", "ModelView",
    "load_model",
    "LRPScope", "Relevance", "RelevanceFitter", "forecast", "score",
    "Mask", "Recipe", "compare_recipes", "get_recipe", "prune_weights", "select", "select_uniform",
    "shrink", "unit_scores",
    "Decoding", "Perplexity", "Repetition", "Report", "TaskAccuracy", "Toxicity",
    "check_gate", "choice_accuracy", "compare", "evaluate", "get_scorer", "perplexity",
    "read_policy",
    "Attribution", "Circuit", "Pairs", "Parts", "Planted", "Search", "attribute", "encode_pairs",
    "find_circuit", "ioi_prompts", "planted", "task_prompts",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
