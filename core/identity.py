"""Which model a result belongs to: hashes of its weights and of its tokenizer."""

import hashlib
import json
from typing import Any

from .errors import ExciseError
from .files.artefact import versions


def model_hash(model: Any) -> str:
    """Hash the weights of a model, by name and value.

    Half-precision weights are hashed as float32, so a checkpoint has one hash whether it was
    loaded in its own precision or a wider one. Tied weights count once.

    Args:
        model: Any torch module.

    Returns:
        32 hexadecimal digits of SHA-256.
    """
    import torch

    digest = hashlib.sha256()
    for name, parameter in [*sorted(model.named_parameters()), *_scales(model)]:
        tensor = parameter.detach().cpu()
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor = tensor.float()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def identity_of(model: Any) -> dict[str, Any]:
    """Return all of a model that decides what it computes, as JSON values.

    Whatever is kept to be used again is keyed by this: weights, precision, how they are used (its
    configurations, less their origin), and the versions of excise and of what it runs on.
    """
    return {
        "model": model_hash(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "architecture": _architecture(model),
        "versions": versions(),
    }


def _architecture(model: Any) -> dict[str, Any]:
    """Return what makes other numbers of equal weights: how they are used, what ends a text."""
    found = {}
    for name in ("config", "generation_config"):
        held = getattr(model, name, None)
        values = {} if held is None else dict(held.to_dict())
        for key in ("_name_or_path", "transformers_version", "architectures"):
            values.pop(key, None)
        found[name] = json.loads(json.dumps(values, default=str))
    return found


def _scales(model: Any) -> list[tuple[str, Any]]:
    """Return what a quantised model keeps beside its codes, such as scales; nothing for others."""
    if not getattr(model, "is_quantized", False):
        return []
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return sorted((name, t) for name, t in model.state_dict().items() if name not in own)


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash a tokenizer: its vocabulary, special tokens, and rules where it is a fast one.

    Returns:
        32 hexadecimal digits of SHA-256.
    """
    rules = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else ""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    content = json.dumps([sorted(tokenizer.get_vocab().items()), special, rules])
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def check_finite(model: Any) -> None:
    """Refuse a model with broken weights.

    Raises:
        ExciseError: Names the first weight that holds NaN or infinity.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            bad = int((~parameter.isfinite()).sum())
            large = str(parameter.dtype) == "torch.float16"  # others overflow where float32 does
            cause = ", or too large for float16: use --dtype float32" if large else ""
            raise ExciseError(
                f"weight {name} holds {bad} values that are NaN or infinite: the weights are "
                f"damaged, get them again{cause}"
            )
