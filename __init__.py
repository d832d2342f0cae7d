"""Find the circuit, cut it, prove it: relevance, pruning and correction of Llama and OPT.

Importing this package loads no torch: public names are looked up when first used.

>>> import excise
>>> sorted(excise.__all__)[:3]
['Batch', 'ExciseError', 'LRPScope']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .circuits.ioi import ioi_prompts
    from .core.data import Batch, Prompt, Sample, collate, encode_prompts, encode_texts
    from .core.errors import ExciseError
    from .core.families import FAMILIES, Family, ModelView
    from .core.loading import load_model
    from .eval.choice import choice_accuracy
    from .eval.perplexity import perplexity
    from .lrp.fitter import RelevanceFitter
    from .lrp.relevance import Relevance
    from .lrp.run import forecast, score
    from .lrp.scope import LRPScope
    from .prune.cut import Mask, select

__version__ = "0.1.0"

_HOME = {
    "Batch": "core.data",
    "ExciseError": "core.errors",
    "FAMILIES": "core.families",
    "Family": "core.families",
    "LRPScope": "lrp.scope",
    "Mask": "prune.cut",
    "ModelView": "core.families",
    "Prompt": "core.data",
    "Relevance": "lrp.relevance",
    "RelevanceFitter": "lrp.fitter",
    "Sample": "core.data",
    "choice_accuracy": "eval.choice",
    "collate": "core.data",
    "encode_prompts": "core.data",
    "encode_texts": "core.data",
    "ioi_prompts": "circuits.ioi",
    "load_model": "core.loading",
    "perplexity": "eval.perplexity",
    "forecast": "lrp.run",
    "score": "lrp.run",
    "select": "prune.cut",
}

__all__ = [  # noqa: RUF022  (grouped by room)
    "Batch", "Prompt", "Sample", "collate", "encode_prompts", "encode_texts",
    "ExciseError",
    "FAMILIES", "Family", "ModelView",
    "load_model",
    "LRPScope", "Relevance", "RelevanceFitter", "forecast", "score",
    "Mask", "select",
    "choice_accuracy", "perplexity",
    "ioi_prompts",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'excise' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
