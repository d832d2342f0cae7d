"""The style sheet of a page: calm, readable, light or dark, fit for paper."""

from functools import cache

from . import colour, table, tokens


_COLOURS = """
:root { color-scheme: light dark;
  --paper: #fdfcfa; --text: #1d2024; --soft: #666c75; --line: #e7e4de; --rule: #bdb9b1;
  --hover: #f5f2ed; --link: #1f5f9e;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "Liberation Sans", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #141619; --text: #e6e8eb; --soft: #9aa1ab; --line: #2a2e33; --rule: #4a5058;
  --hover: #1b1e22; --link: #86bdf0; } }
"""

_LAYOUT = """
*, *::before, *::after { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; padding: 0 1.75rem; max-width: 60rem; background: var(--paper);
  color: var(--text); font: 400 1rem/1.6 var(--sans); }
header { padding: 4.2rem 0 2rem; }
header::before { content: ""; display: block; width: 7.5rem; height: 4px; border-radius: 2px;
  margin-bottom: 1.9rem; -webkit-print-color-adjust: exact; print-color-adjust: exact;
  background: linear-gradient(90deg, var(--xc-n6), var(--xc-n3), var(--line), var(--xc-p3),
    var(--xc-p6)); }
h1 { margin: 0; font-size: clamp(1.7rem, 1.2rem + 2.2vw, 2.35rem); line-height: 1.18;
  font-weight: 650; letter-spacing: -.018em; text-wrap: balance; overflow-wrap: anywhere; }
.lead { margin: .9rem 0 0; max-width: 46rem; font-size: 1.12rem; line-height: 1.55;
  color: var(--soft); text-wrap: pretty; }
nav { padding: .85rem 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
  font-size: .9rem; }
nav ol { display: flex; flex-wrap: wrap; gap: .3rem 1.7rem; margin: 0; padding: 0;
  list-style: none; }
a { color: var(--link); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; text-underline-offset: .2em; }
a:focus-visible { outline: 2px solid var(--link); outline-offset: 3px; border-radius: 2px; }
section { padding: 2.7rem 0 0; }
h2 { margin: 0 0 1.1rem; font-size: 1.3rem; line-height: 1.3; font-weight: 620;
  letter-spacing: -.008em; scroll-margin-top: 1.5rem; overflow-wrap: anywhere; }
.body > * { margin: 0 0 1.5rem; }
.body > :last-child { margin-bottom: 0; }
.body { overflow-x: auto; padding: 2px; margin: -2px; }
.body p { max-width: 44rem; text-wrap: pretty; }
.body > p + p { margin-top: -.6rem; }
.body .xt-text { max-width: none; text-wrap: initial; }
.body > svg { display: block; max-width: 100%; height: auto; }
.note { margin: 1.2rem 0 0; padding-left: 1rem; border-left: 2px solid var(--line);
  max-width: 44rem; font-size: .89rem; line-height: 1.55; color: var(--soft); }
footer { margin-top: 3.6rem; padding: 1.3rem 0 3.4rem; border-top: 1px solid var(--line);
  font-size: .82rem; line-height: 1.6; color: var(--soft); overflow-wrap: anywhere; }
footer p { margin: 0; }
code { font: .9em var(--mono); }
.skip { position: absolute; left: 1rem; top: -4rem; padding: .5rem .9rem; z-index: 1;
  background: var(--paper); border: 1px solid var(--rule); border-radius: 6px; }
.skip:focus { top: 1rem; }
"""

_NARROW = """
@media (max-width: 46rem) {
  body { padding: 0 1.1rem; }
  header { padding-top: 2.4rem; }
  .body > svg { max-width: none; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; background: none; }
  header { padding-top: 0; }
  nav, .skip { display: none; }
  section { padding-top: 1.6rem; }
  h2 { break-after: avoid; }
  .body, .xd { overflow: visible; }
  .xd table { font-size: 9pt; }
  .xd th, .xd td { padding: .4rem .5rem; }
  .xd thead th { white-space: normal; vertical-align: bottom; }
  .body > *, tr { break-inside: avoid; }
}
"""


@cache
def stylesheet() -> str:
    """All rules of a page, those of its tables and token texts and the palette included."""
    return "".join((_COLOURS, colour.stylesheet(), _LAYOUT, table.CSS, tokens.CSS, _NARROW))
