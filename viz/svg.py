"""The few SVG parts a picture is made of: text, ticks, a colour legend and the style."""

from .colour import Scale, fallback, fallback_ink, stylesheet
from .text import MINUS, escape, number


FONTS = (
    "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans',"
    "'Liberation Sans',Arial,sans-serif"
)

_INK = "--xh-ink:#1d2024;--xh-soft:#666c75;--xh-line:#d5d3ce;--xh-paper:#fdfcfa"
_INK_DARK = "--xh-ink:#e9eaec;--xh-soft:#9aa1ab;--xh-line:#3a3e45;--xh-paper:#141619"
_STYLE = (
    f":root{{color-scheme:light dark;{_INK}}}"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_INK_DARK}}}}}"
    f".xh{{font-family:{FONTS};font-size:12px;font-variant-numeric:tabular-nums;"
    "-webkit-print-color-adjust:exact;print-color-adjust:exact}"
    ".xh text{fill:var(--xh-ink)}.xh .soft{fill:var(--xh-soft)}"
    ".xh .head{font-size:15px;font-weight:600}.xh .tick{font-size:11px;fill:var(--xh-soft)}"
    ".xh .end{text-anchor:end}.xh .mid{text-anchor:middle}.xh line{stroke:var(--xh-line)}"
    ".xh .c{fill:var(--fill)}.xh .c:hover{stroke:var(--xh-ink);stroke-width:1.5}"
    ".xh .hatch{stroke:var(--ink);stroke-width:1;fill:none;pointer-events:none}"
    ".xh .mark{stroke:var(--xh-ink);stroke-width:1.5}"
    ".xh .moat{stroke:var(--xh-paper);stroke-width:4}"
    ".xh .marks{pointer-events:none}"
    ".xh text.sign{fill:var(--ink);font-weight:700;text-anchor:middle}"
    ".xh .halo{stroke:var(--xh-paper);stroke-width:3;paint-order:stroke;pointer-events:none}"
    ".xh .even{stroke:var(--xh-soft);stroke-dasharray:5 4;pointer-events:none}"
    ".xh .curve{stroke:var(--fill);stroke-width:2;stroke-linejoin:round;fill:none}"
    ".xh .curve.second{stroke-dasharray:7 4}.xh .lead{stroke:var(--fill);stroke-opacity:.5}"
    ".xh .bar{stroke:var(--fill);stroke-width:1.5;stroke-opacity:.6}"
    ".xh .band{fill:var(--fill);fill-opacity:.11}"
    ".xh .dot{fill:var(--fill);stroke:var(--xh-paper);stroke-width:1.5;"
    "vector-effect:non-scaling-stroke}.xh .dot:hover,.xh .spot:hover{stroke:var(--xh-ink)}"
    ".xh .dot.second{fill:var(--xh-paper);stroke:var(--fill)}"
    ".xh .spot{fill:var(--fill);fill-opacity:.6}"
    ".xh .cloud{stroke:var(--fill);stroke-width:5;stroke-linecap:round;stroke-opacity:.35}"
)


def document(width: float, height: float, label: str, parts: list[str]) -> str:
    """A complete SVG that also stands alone as a file.

    Args:
        width: Natural width in pixels; a page may shrink it.
        height: Natural height in pixels.
        label: What the picture says, in words, for readers who do not see it.
        parts: Elements.
    """
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="xh" {size} role="img" '
        f'aria-label="{escape(label)}" fill="#1d2024" font-family="sans-serif" font-size="12">'
        f"<style>{stylesheet()}{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>"
    )


def text(x: float, y: float, content: str, css: str = "", extra: str = "") -> str:
    """One line of text; `content` is escaped."""
    anchors = {"end": ' text-anchor="end"', "mid": ' text-anchor="middle"'}
    anchor = next((anchors[name] for name in css.split() if name in anchors), "")
    css = f' class="{css}"' if css else ""
    return f'<text x="{x:g}" y="{y:g}"{css}{anchor}{extra}>{escape(content)}</text>'


def box(
    x: float, y: float, width: float, height: float, css: str, inside: str = "", data: str = ""
) -> str:
    """A coloured rectangle; `css` is a palette class, `inside` its content, `data` attributes."""
    shape = f'x="{x:.6g}" y="{y:.6g}" width="{width:.4g}" height="{height:.4g}" rx="1.5"'
    start = f'<rect class="c {css}" {shape} fill="{fallback(css)}"{data}'
    return f"{start}>{inside}</rect>" if inside else f"{start}/>"


def hatch(x: float, y: float, width: float, height: float) -> str:
    """Diagonal lines over a rectangle: nothing is known here."""
    gap = 5.0
    lines = []
    start = gap / 2
    while start < width + height:
        x1, y1 = (x + start, y) if start <= width else (x + width, y + start - width)
        x2, y2 = (x, y + start) if start <= height else (x + start - height, y + height)
        lines.append(f"M{x1:g} {y1:g}L{x2:g} {y2:g}")
        start += gap
    return f'<path class="hatch xc-nan" stroke="#6b7077" d="{"".join(lines)}"/>'


def outline(
    x: float, y: float, width: float, height: float, value: float, css: str
) -> tuple[str, str]:
    """The mark of a notable cell, large enough to be read.

    Returns:
        A bright gap around it, to be drawn before all other marks, and its frame with the sign.
    """
    wide, tall = max(width, 12.0), max(height, 12.0)
    left, top = x + (width - wide) / 2, y + (height - tall) / 2
    shape = f'x="{left:g}" y="{top:g}" width="{wide:g}" height="{tall:g}" rx="2"'
    size = min(wide + 1, tall + 1, 14)
    extra = f' font-size="{size:g}" fill="{fallback_ink(css)}"'
    sign = "+" if value > 0 else MINUS
    middle = y + height / 2 + size * 0.35
    return (
        f'<rect {shape} class="moat" stroke="#ffffff" stroke-width="4" fill="none"/>',
        f'<rect {shape} class="c mark {css}" stroke="#1d2024" fill="{fallback(css)}"/>'
        + text(x + width / 2, middle, sign, f"sign mid {css}", extra),
    )


def legend(x: float, y: float, scale: Scale, heading: str, height: float = 132) -> list[str]:
    """A standing colour bar with its numbers printed: the symmetric range, or zero to the limit."""
    parts = [text(x, y + 9, heading, "soft")]
    top = y + 20
    steps = list(reversed(scale.steps())) if scale.limit else [0]
    band = height / len(scale.steps())
    for index, step in enumerate(steps):
        css = scale.css_of_step(step)
        place = f'x="{x:g}" y="{top + index * band:g}" width="14" height="{band + 0.4:g}"'
        parts.append(f'<rect {place} class="c {css}" fill="{fallback(css)}"/>')
    shares = (1.0, 0.5, 0.0, -0.5, -1.0) if scale.signed else (1.0, 0.75, 0.5, 0.25, 0.0)
    for index, share in enumerate(shares if scale.limit else (0.0,)):
        at = top + height * index / (len(shares) - 1) if scale.limit else top + band / 2
        label = number(share * scale.limit, 3, sign=scale.signed, zeros=True)
        parts.append(f'<line x1="{x + 14:g}" y1="{at:g}" x2="{x + 19:g}" y2="{at:g}"/>')
        parts.append(text(x + 24, at + 4, label, "tick"))
    return parts


def spacing(cell: float, least: float) -> int:
    """How many cells lie between two labels so that these are `least` pixels apart: 1, 2, 5, 10 ...

    >>> spacing(15, 22), spacing(30, 22), spacing(9, 22)
    (2, 1, 5)
    """
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power * cell >= least:
                return factor * power
        power *= 10
