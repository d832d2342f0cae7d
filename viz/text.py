"""Untrusted text and numbers, made safe and readable for XML and HTML.

Everything that comes from a model, a tokenizer or a file passes through `escape` before it is
written into a page. Numbers are printed with a true minus sign; the exact value belongs into a
`data-value` attribute beside it, see `exact`.
"""

import math
import re
import textwrap
from html import escape as _escape


# What XML 1.0 forbids, the C1 controls, and the marks that reorder the text around them.
_UNFIT = re.compile(
    "[^\t\n\r\u0020-\u007e\u00a0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
    "|[\u202a-\u202e\u2066-\u2069]"
)
MINUS = "\N{MINUS SIGN}"


def escape(value: object) -> str:
    """Text that is safe inside an element and inside a quoted attribute.

    Characters that XML cannot hold, and those that reorder their surroundings, become U+FFFD.

    >>> escape('</script><img onerror="x">')
    '&lt;/script&gt;&lt;img onerror=&quot;x&quot;&gt;'
    """
    return _escape(_UNFIT.sub("\ufffd", str(value)), quote=True)


def number(value: float, digits: int = 4, *, sign: bool = False, zeros: bool = False) -> str:
    """A number for readers: few digits, a true minus, `NaN` and infinity by name.

    Args:
        value: The number.
        digits: Significant digits; whole numbers keep all of theirs.
        sign: Write `+` before positive numbers.
        zeros: Keep zeros at the end, so that a list of numbers lines up.

    >>> number(-0.123456), number(0.5, sign=True), number(30522.0), number(float("nan"))
    ('−0.1235', '+0.5', '30522', 'NaN')
    """
    if math.isnan(value):
        return "NaN"
    lead = MINUS if value < 0 else "+" if sign and value > 0 else ""
    size = abs(float(value))
    if math.isinf(size):
        return f"{lead}∞"
    if size == 0 or (not zeros and size < 1e15 and size == int(size)):
        return f"{lead}{int(size)}"
    if 10**digits <= size < 1e9:
        return f"{lead}{size:.0f}"
    mantissa, _, power = f"{size:{'#' if zeros else ''}.{digits}g}".partition("e")
    mantissa = mantissa.rstrip(".")
    if not power:
        return lead + mantissa
    return f"{lead}{mantissa}e{MINUS if power[0] == '-' else ''}{power[1:].lstrip('0') or '0'}"


def exact(value: float) -> str:
    """A number for machines: `float(exact(x)) == x`, in ASCII."""
    return repr(float(value))


def shorten(text: str, width: int) -> str:
    """At most `width` characters, the rest replaced by an ellipsis."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def wrap(text: str, width: int, lines: int = 4) -> list[str]:
    """Lines of at most `width` characters; what does not fit in `lines` ends in an ellipsis."""
    found = textwrap.wrap(text, max(width, 1)) or [""]
    if len(found) > lines:
        found = [*found[: lines - 1], shorten(" ".join(found[lines - 1 :]), width)]
    return found


def prose(text: str) -> str:
    """Plain text as escaped HTML paragraphs, split at blank lines.

    >>> prose("one & two")
    '<p>one &amp; two</p>'
    """
    parts = (part.strip() for part in re.split(r"\n\s*\n", text))
    return "\n".join(f"<p>{escape(part)}</p>" for part in parts if part)
