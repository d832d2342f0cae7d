"""Which classes of modules are known, by their module and name: a name alone says nothing.

A class counts as what it is here, and no other: a subclass may compute something else, and so may
a class of somebody's own with the same name. What is not known has no rule, and is refused.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from torch import nn

SHARED: dict[str, str] = {
    "torch.nn.modules.container.ModuleList": "part",
    "torch.nn.modules.linear.Linear": "linear",
    "bitsandbytes.nn.modules.Linear4bit": "linear",
    "bitsandbytes.nn.modules.Linear8bitLt": "linear",
    "torch.nn.modules.normalization.LayerNorm": "layer_norm",
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.SiLUActivation": "silu",
    "torch.nn.modules.activation.GELU": "gelu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.PytorchGELUTanh": "gelu_tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.sparse.Embedding": "embedding",
    "torch.nn.modules.dropout.Dropout": "dropout",
}
"""Classes that several families use, as kinds; `lrp/rules.py` has the rule for each kind. A `part`
holds others, and computes what the family's row says."""

_DECODER = {
    "ForCausalLM": "part",
    "Model": "part",
    "DecoderLayer": "part",
    "Attention": "part",
    "MLP": "part",
    "RMSNorm": "rms_norm",
    "RotaryEmbedding": "constant",
}


def _own(package: str, stem: str, kinds: Mapping[str, str] = _DECODER) -> dict[str, str]:
    module = f"transformers.models.{package}.modeling_{package}"
    return {f"{module}.{stem}{name}": kind for name, kind in kinds.items()}


OWN: dict[str, dict[str, str]] = {
    "llama": _own("llama", "Llama"),
    "mistral": _own("mistral", "Mistral"),
    "qwen2": _own("qwen2", "Qwen2"),
    "qwen3": _own("qwen3", "Qwen3"),
    "gemma3_text": _own(
        "gemma3",
        "Gemma3",
        {
            **_DECODER,
            "TextModel": "part",
            "RMSNorm": "rms_norm_plus_one",
            "TextScaledWordEmbedding": "embedding",
        },
    ),
    "opt": _own(
        "opt",
        "OPT",
        {
            **dict.fromkeys(
                ("ForCausalLM", "Model", "Decoder", "DecoderLayer", "Attention"), "part"
            ),
            "LearnedPositionalEmbedding": "embedding",
        },
    ),
}
"""Classes of one family's own, by its `model_type`, the same in all supported transformers."""

_KINDS = {name: kind for known in (SHARED, *OWN.values()) for name, kind in known.items()}


def full_name(module: "nn.Module") -> str:
    """Return the name of a module's class with where it comes from."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def kind_of(module: "nn.Module") -> str | None:
    """Return the kind of a module, or None for a class that no rule is known for."""
    kind = _KINDS.get(full_name(module))
    if kind == "gelu" and vars(module).get("approximate") == "tanh":
        return "gelu_tanh"
    return kind


def unknown_modules(model: "nn.Module", model_type: str) -> dict[str, str]:
    """List the modules whose class is not of a family, as path to class name.

    Args:
        model: Any model.
        model_type: The family. Of one without a row, modules that hold others are not listed.
    """
    known = SHARED | OWN.get(model_type, _KINDS)
    return {
        path: _shown(module)
        for path, module in model.named_modules()
        if full_name(module) not in known
        and (model_type in OWN or not any(True for _ in module.children()))
    }


def compiled_module(model: "nn.Module") -> str | None:
    """Return the path of a module that is compiled, "" for the model itself, or None."""
    for path, module in model.named_modules():
        optimized = full_name(module) == "torch._dynamo.eval_frame.OptimizedModule"
        if optimized or module._compiled_call_impl is not None:
            return path
    return None


def _shown(module: "nn.Module") -> str:
    """Return a class's name, in full where a known one is called the same."""
    name = type(module).__name__
    taken = any(known.rpartition(".")[2] == name for known in _KINDS)
    return full_name(module) if taken else name
