"""A text whose tokens are coloured by a signed score, as HTML that flows like text."""

import math
import re
from collections.abc import Sequence

from .colour import Scale
from .text import MINUS, escape, exact, number


NOTABLE = 5
"""How many tokens carry their number."""

CSS = """
.xt-name { font-weight: 600; margin: 0 0 .6rem; }
.xt-text { margin: 0; line-height: 2.35; overflow-wrap: anywhere; }
.xt-text span.t { background: var(--fill); color: var(--ink); padding: .2em .14em .12em;
  margin: 0 1px; border-radius: 3px; border-bottom: 2px solid transparent; unicode-bidi: isolate;
  white-space: pre;
  -webkit-box-decoration-break: clone; box-decoration-break: clone;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.xt-text span.t:hover { outline: 2px solid var(--text); outline-offset: 1px; }
.xt .pos { border-bottom: 2px solid var(--xc-p5) !important; }
.xt .neg { border-bottom: 2px dotted var(--xc-n5) !important; }
.xt .nan { outline: 1px dashed var(--soft); outline-offset: -1px; }
.xt-text i { font-style: normal; position: relative; }
.xt-text i::before { opacity: .5; }
.xt-text i.sp::before { content: "·"; position: absolute; left: 0; right: 0; text-align: center; }
.xt-text i.tab::before { content: "⇥"; position: absolute; left: 0; }
.xt-text i.nl::before { content: "↵"; }
.xt-text i.cr::before { content: "␍"; }
.xt-text i.none::before { content: "∅"; }
.xt-text b { font: 600 .68em/1 var(--sans); font-variant-numeric: tabular-nums;
  vertical-align: .75em; margin-left: .2em; user-select: none; -webkit-user-select: none; }
.xt-key { display: flex; flex-wrap: wrap; gap: .35rem 1.4rem; align-items: center;
  margin: 1rem 0 0; color: var(--soft); font-size: .82rem; }
.xt-bar { display: inline-flex; vertical-align: -2px; margin: 0 .45em; border-radius: 2px;
  overflow: hidden; }
.xt-bar span { width: 9px; height: 12px; background: var(--fill);
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.xt-key u { text-decoration: none; padding-bottom: 1px; color: var(--text); }
"""
"""What `page` adds to its style; the fragment is not complete without it."""

_NEWLINE, _TAB = "\n", "\t"


def token_heatmap(
    tokens: Sequence[str],
    scores: Sequence[float],
    *,
    title: str,
    scale: Scale | None = None,
) -> str:
    """Colours each token of a text by its score.

    The sign is in the colour, in the line under the token (solid or dotted) and in the tooltip, and
    the largest magnitudes carry their number. Spaces at a token's ends, line ends and tabs are
    drawn faintly; copying the text yields the text itself.

    Args:
        tokens: The decoded pieces of the text, in order.
        scores: One signed number per token.
        title: What the scores explain.
        scale: The colour scale; `None` takes the tightest symmetric one.

    Returns:
        An HTML `<figure>`, to be placed in a page.

    Raises:
        ValueError: Not one score for each token, or no tokens at all.
    """
    if len(tokens) != len(scores):
        raise ValueError(f"{len(tokens)} tokens need as many scores, got {len(scores)}")
    if not tokens:
        raise ValueError("a token heatmap needs at least one token")
    values = [float(score) for score in scores]
    scale = scale or Scale.fit(values, signed=True)
    real = [at for at, value in enumerate(values) if value and not math.isnan(value)]
    notable = set(sorted(real, key=lambda at: -abs(values[at]))[:NOTABLE])
    spans = "".join(
        _spans(index, token, value, scale, index in notable)
        for index, (token, value) in enumerate(zip(tokens, values, strict=True))
    )
    return (
        f'<figure class="xt">\n<figcaption class="xt-name">{escape(title)}</figcaption>\n'
        f'<p class="xt-text">{spans}</p>\n{_key(scale, values)}\n</figure>'
    )


def _spans(index: int, token: str, value: float, scale: Scale, notable: bool) -> str:
    """One span for the token, or one for each line that it ends or begins."""
    nan = math.isnan(value)
    step = 0 if nan else scale.step(value)
    sign = " nan" if nan else " pos" if step > 0 else " neg" if step < 0 else ""
    said = "NaN, not a number" if nan else number(value, 6, sign=True)
    label = f"<b>{number(value, 2, sign=True, zeros=True)}</b>" if notable else ""
    attributes = (
        f'class="t {scale.css(value)}{sign}" data-token="{index}" data-value="{exact(value)}" '
        f'title="token {index}, {escape(repr(token))}: {said}"'
    )
    pieces = re.findall(r"[^\n]*\n|[^\n]+", token) or [""]
    spans = [
        f"<span {attributes}>{_visible(piece)}{label if at == len(pieces) - 1 else ''}</span>"
        + "<br>" * piece.count("\n")
        for at, piece in enumerate(pieces)
    ]
    # A line may break before a token that begins with white space, and nowhere inside one.
    return ("<wbr>" if token[:1].isspace() else "") + "".join(spans)


def _visible(piece: str) -> str:
    """The piece, with marks on the white space at its ends and on every line end and tab."""
    if not piece:
        return '<i class="none"></i>'
    first = len(piece) - len(piece.lstrip())
    last = len(piece.rstrip())
    return "".join(
        _mark(sign) if sign in "\n\r\t" or (sign.isspace() and not first <= at < last)
        else escape(sign)
        for at, sign in enumerate(piece)
    )  # fmt: skip


def _mark(sign: str) -> str:
    """A mark drawn by the style sheet, so that copying yields the white space and not the mark."""
    if sign in "\n\r":
        return f'<i class="{"nl" if sign == _NEWLINE else "cr"}"></i>'
    return f'<i class="{"tab" if sign == _TAB else "sp"}">{escape(sign)}</i>'


def _key(scale: Scale, values: list[float]) -> str:
    bar = "".join(f'<span class="{scale.css_of_step(step)}"></span>' for step in scale.steps())
    lowest = number(-scale.limit if scale.signed else 0.0, 3)
    ends = f'{lowest}<span class="xt-bar">{bar}</span>{number(scale.limit, 3, sign=scale.signed)}'
    parts = [f"<span>{ends}</span>"]
    if any(value > 0 for value in values):
        parts.append('<span><u class="pos">solid line</u> speaks for it (+)</span>')
    if any(value < 0 for value in values):
        parts.append(f'<span><u class="neg">dotted line</u> speaks against it ({MINUS})</span>')
    if missing := sum(math.isnan(value) for value in values):
        parts.append(f"<span>{missing} NaN, framed by dashes</span>")
    return f'<div class="xt-key">{"".join(parts)}</div>'
