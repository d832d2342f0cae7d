"""Numbers that people write: in options, policies and budgets, all by one grammar.

Python's own `int` and `float` also take `1_0`, digits of other scripts, `nan` and `infinity`.
"""

import re


_WHOLE = re.compile(r"[+-]?[0-9]{1,15}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")


def whole_number(text: str) -> int | None:
    """Return a whole number, or None where the text is none.

    >>> whole_number(" 12 "), whole_number("1_0"), whole_number("1.5")
    (12, None, None)
    """
    return int(text) if _WHOLE.fullmatch(text.strip()) else None


def number(text: str) -> float | None:
    """Return a finite number, or None where the text is none.

    >>> number("1e-3"), number(".5"), number("nan"), number("1:30")
    (0.001, 0.5, None, None)
    """
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def amount(text: str) -> tuple[float, bool] | None:
    """Return a number and whether it was a percentage, which counts as its hundredth.

    >>> amount("1 %"), amount("0.01"), amount("x%")
    ((0.01, True), (0.01, False), None)
    """
    percent = text.strip().endswith("%")
    found = number(text.strip().removesuffix("%"))
    return None if found is None else (found / 100 if percent else found, percent)
