"""A picture as compact JSON for the page's script, safe inside a `<script>` element."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .data import CircuitPicture, EdgeRow, Node
from .layout import LEVELS, Layout
from .svg import edge_look


DIGITS = 4
"""Significant digits of scores."""

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Powers of ten below the largest one; what lies deeper is zero beside it."""


def packed(picture: CircuitPicture) -> str:
    """Writes everything the script needs.

    Numbers are columns: whole numbers as differences, scores as `DIGITS` digits and a letter for
    the power of ten. 20,000 edges with intervals take about 500 KB, without them 250 KB.

    Returns:
        ASCII JSON without `<`, `>` and `&`, so that no text in it can end the element it is in.
    """
    text = json.dumps(_columns(picture), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def numbers(values: Sequence[float]) -> dict[str, Any]:
    """A column of finite numbers, rounded to `DIGITS` significant digits.

    >>> numbers([0.12345, -20.0, 0.0])
    {'top': 1, 'digits': [1234, -2, 0], 'powers': 'fab'}
    """
    pairs = [_rounded(float(value)) for value in values]
    top = max((power for digits, power in pairs if digits), default=0)
    kept = [(d, top - p) if d and top - p < len(_LETTERS) else (0, 0) for d, p in pairs]
    return {
        "top": top,
        "digits": [digits for digits, _ in kept],
        "powers": "".join(_LETTERS[below] for _, below in kept),
    }


def _rounded(value: float) -> tuple[int, int]:
    """Digits and power of ten, without zeros at the end."""
    if value == 0:
        return 0, 0
    mantissa, _, power = f"{value:.{DIGITS - 1}e}".partition("e")
    whole, _, decimals = mantissa.partition(".")
    decimals = decimals.rstrip("0")
    return int(whole + decimals), int(power) - len(decimals)


def _columns(picture: CircuitPicture) -> dict[str, Any]:
    return {
        "title": picture.title,
        "level": picture.level,
        "layers": picture.layers,
        "heads": picture.heads,
        "groups": picture.kv_groups,
        "answer": picture.answer,
        "size": picture.size,
        "signed": picture.signed_order,
        "layout": _places(Layout(picture)),
        "nodes": _nodes(picture.nodes),
        "edges": _edges(picture.edges),
        "curve": [
            [point.size, *map(_finite, (point.faithfulness, point.low, point.high, point.random))]
            for point in sorted(picture.curve, key=lambda point: point.size)
        ],
        "examples": [
            {
                "tokens": example.tokens,
                "attention": {
                    name: [round(1000 * row[key]) for query, row in enumerate(rows)
                           for key in range(query + 1)]
                    for name, rows in example.attention.items()
                },
            }
            for example in picture.examples
        ],
    }  # fmt: skip


def _places(layout: Layout) -> dict[str, Any]:
    return {
        "width": layout.width,
        "height": layout.height,
        "columns": layout.columns,
        "rows": layout.rows,
        "mlp": layout.mlp,
        "wide": layout.wide,
        "tall": layout.tall,
        "drop": layout.drop,
        "largest": layout.largest,
        "smallest": layout.smallest,
        "below": layout.label_below,
        "labels": layout.labels,
        "looks": [edge_look(level) for level in range(LEVELS)],
        "bars": {name: [bar.x, bar.y, bar.half] for name, bar in layout.bars.items()},
    }


def _nodes(nodes: list[Node]) -> dict[str, Any]:
    return {
        "name": [node.name for node in nodes],
        "kind": "".join(node.kind[0] for node in nodes),
        "layer": [node.layer for node in nodes],
        "unit": [node.unit for node in nodes],
        **_scores(nodes),
    }


def _edges(edges: list[EdgeRow]) -> dict[str, Any]:
    rows = sorted(edges, key=lambda edge: (edge.source, edge.target, edge.reads))
    return {
        "source": _steps([edge.source for edge in rows]),
        "target": _steps([edge.target for edge in rows]),
        "reads": "".join(edge.reads[0] for edge in rows),
        **_scores(rows),
    }


def _scores(rows: Sequence[Node | EdgeRow]) -> dict[str, Any]:
    """Scores, which rows are kept, and which have an interval."""
    known = [row for row in rows if row.low is not None]
    found: dict[str, Any] = {
        "score": numbers([row.score for row in rows]),
        "kept": "".join("01"[row.kept] for row in rows),
    }
    if known:
        found["known"] = "".join("01"[row.low is not None] for row in rows)
        found["low"] = numbers([row.low or 0.0 for row in rows])
        found["high"] = numbers([row.high or 0.0 for row in rows])
    return found


def _steps(values: list[int]) -> list[int]:
    """The first number, then each one's difference from the one before."""
    return values[:1] + [after - before for before, after in pairwise(values)]


def _finite(value: float | None) -> float | None:
    """A number of a curve for JSON, which knows no NaN."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
