"""JSON as others can read it: what no JSON number is becomes null, here and nowhere else."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, **options: Any) -> str:
    """Write a value as JSON; every output goes through here.

    Args:
        value: JSON values, NaN and infinities among them.
        options: Those of `json.dumps`.
    """
    return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """Return what JSON can hold: null for numbers that are none, as a ratio to nothing."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
