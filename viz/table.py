"""A plain HTML table that a reader can scan and a screen reader can follow."""

import math
import re
from collections.abc import Sequence

from .text import MINUS, escape, number


CSS = """
.xd { overflow-x: auto; }
.xd table { border-collapse: collapse; min-width: 60%; font-size: .93rem; }
.xd caption { text-align: left; font-weight: 600; padding: 0 0 .6rem; }
.xd th, .xd td { padding: .5rem .9rem; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
.xd thead th { color: var(--soft); font-weight: 500; font-size: .82rem; white-space: nowrap;
  border-bottom: 1.5px solid var(--rule); }
.xd tbody th { font-weight: 500; min-width: 8.5rem; }
.xd tbody > tr > :not(.num) { overflow-wrap: anywhere; }
.xd td:not(.num) { min-width: 5.5rem; }
.xd tr > :first-child { padding-left: .2rem; }
.xd tr > :last-child { padding-right: .2rem; }
.xd tbody tr:hover > * { background: var(--hover); }
.xd .num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.xd .none { color: var(--soft); }
"""
"""What `page` adds to its style; the fragment is not complete without it."""

# 12.4   −3 %   0.31 ± 0.02   0.31 [0.29, 0.33]   1,536   4.1e-05   25/30   3.2x
_AMOUNT = (
    r"[+\-\u2212±]?\s?(?:\d[\d,\u202f]*(?:\.\d+)?|\.\d+)"
    r"(?:[eE][+\-\u2212]?\d+)?\s?[%x\u00d7k]?"
)
_TO = r"(?:,|;|to|\u2013|…)"
_NUMERIC = re.compile(
    rf"[<>≤≥≈~]?\s*{_AMOUNT}(?:\s*(?:±|to|\u2013|…|/|of)\s*{_AMOUNT})?"
    rf"(?:\s*[\[(]\s*{_AMOUNT}\s*{_TO}\s*{_AMOUNT}\s*[\])])?"
)

LONGEST = 80
"""Characters of a text that can be a number: longer ones are not even tried."""


def table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str | None = None
) -> str:
    """Writes rows under headers; the first cell of a row names it.

    Numbers, and texts that are numbers (`12.3 ± 0.4`, `0.31 [0.29, 0.33]`, `5 %`), stand at the
    right, and the floats of one column share their decimals wherever that loses nothing. `None`
    becomes a dash, NaN is named.

    Args:
        headers: One text per column.
        rows: Text, numbers, truth values or `None`; every row as long as the headers.
        caption: A line above the table.

    Returns:
        An HTML fragment, to be placed in a page.

    Raises:
        ValueError: A row that is not as long as the headers.
    """
    for index, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(f"row {index} has {len(row)} cells, there are {len(headers)} headers")
    columns = [[row[at] for row in rows] for at in range(len(headers))]
    places = [_decimals(column) for column in columns]
    numeric = [_is_numeric_column(column) for column in columns]
    heads = "".join(
        f'<th scope="col"{_class(numeric[at])}>{escape(header)}</th>'
        for at, header in enumerate(headers)
    )
    body = "\n".join(
        "<tr>" + "".join(_cell(at, value, places[at]) for at, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>\n" if caption else ""
    return (
        f'<div class="xd"><table>\n{title}<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _cell(at: int, value: object, decimals: int | None) -> str:
    words = _words(value, decimals)
    if at == 0:
        return f'<th scope="row"{_class(_is_number(value))}>{words}</th>'
    return f"<td{_class(_is_number(value) or value is None)}>{words}</td>"


def _words(value: object, decimals: int | None) -> str:
    if value is None:
        return '<span class="none" title="no value">&ndash;</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", MINUS)
    if isinstance(value, float):
        if decimals is not None and math.isfinite(value):
            return f"{value:,.{decimals}f}".replace("-", MINUS)
        return number(value)
    return escape(value)


def _decimals(column: Sequence[object]) -> int | None:
    """Decimals for all floats of a column, or `None` if these differ too much to share any.

    Four digits of the largest and two of the smallest are shown, less the zeros at everyone's end.

    >>> _decimals([17.4312, 0.5]), _decimals([3.41, -0.08]), _decimals([1e-9, 7.0])
    (2, 2, None)
    """
    floats = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value)]
    sizes = [value for value in floats if value]
    if not sizes:
        return None
    smallest, largest = (math.floor(math.log10(size)) for size in (min(sizes), max(sizes)))
    decimals = max(3 - largest, 1 - smallest, 0)
    if largest - smallest > 4 or decimals > 6 or largest > 8:
        return None
    while decimals and all(f"{value:.{decimals}f}".endswith("0") for value in floats):
        decimals -= 1
    return decimals


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return True
    text = str(value).strip()
    return len(text) <= LONGEST and bool(_NUMERIC.fullmatch(text))


def _is_numeric_column(column: Sequence[object]) -> bool:
    given = [value for value in column if value is not None]
    return bool(given) and all(_is_number(value) for value in given)


def _class(numeric: bool) -> str:
    return ' class="num"' if numeric else ""
