"""One HTML file that says everything itself: no script, no font, no picture from elsewhere.

The page's own rules forbid the browser to load anything. It follows the reader's light or dark
scheme and prints in light colours. Only a page that is given a script has one, and its rules allow
that very text and no other.
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.files.output import whole_file
from .style import stylesheet
from .text import escape


POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""The content security policy: inline style, inline pictures, nothing from the network."""


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        heading: Plain text.
        body: HTML: what `heatmap`, `token_heatmap`, `table`, `prose` and the functions of `chart`
            return, or several of them one after the other. It is placed as it is.
        note: Plain text below the body: how to read it, what it does not say.
    """

    heading: str
    body: str
    note: str = ""


def page(
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    footer: str = "",
    style: str = "",
    script: str = "",
) -> str:
    """Writes a complete HTML document.

    Args:
        title: Plain text; the page's only `<h1>`.
        sections: The parts, in order; from three on there is a list of contents.
        subtitle: Plain text below the title: the one sentence to take away.
        footer: Plain text at the end: where the page comes from. Lines stay lines.
        style: CSS after the page's own.
        script: JavaScript, placed as it is at the end. It runs by its hash in the page's policy,
            which then also allows pictures that the script makes itself (`blob:`).

    Returns:
        The document; `write_page` saves it.

    Raises:
        ValueError: A script or a style that would end its own element.
    """
    if re.search(r"</script|<!--|\r", script, re.IGNORECASE) or "</style" in style.lower():
        raise ValueError("a script or style holds its own end tag, a comment's start or a CR")
    names = [_anchor(index, section.heading) for index, section in enumerate(sections)]
    lead = f'\n<p class="lead">{escape(subtitle)}</p>' if subtitle else ""
    end = f"\n<footer>\n<p>{_lines(footer)}</p>\n</footer>" if footer else ""
    body = "\n".join(map(_section, names, sections))
    run = f"\n<script>{script}</script>" if script else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{stylesheet()}{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>{escape(title)}</h1>{lead}
</header>
{_contents(names, sections)}<main id="main">
{body}
</main>{end}{run}
</body>
</html>
"""


def framed(document: str, height: int = 640) -> str:
    """Put a whole page into a notebook's cell, with the page's own rules and style.

    Args:
        document: What `page` returns.
        height: In pixels.

    Returns:
        An HTML element that holds it.
    """
    return (
        f'<iframe srcdoc="{escape(document)}" width="100%" height="{height}" '
        'style="border: 0" sandbox></iframe>'
    )


def write_page(path: str | os.PathLike[str], html: str, overwrite: bool = False) -> Path:
    """Saves a page, whole or not at all.

    Args:
        path: The file.
        html: The document.
        overwrite: Whether an existing page may be replaced.

    Returns:
        The path.

    Raises:
        ExciseError: The path is taken, or cannot be written.
    """
    path = Path(path)
    whole_file(path, html, overwrite, "page")
    return path


def _policy(script: str) -> str:
    if not script:
        return POLICY
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{POLICY.replace('img-src data:', 'img-src data: blob:')}; script-src 'sha256-{digest}'"


def _section(name: str, section: Section) -> str:
    note = f'\n<p class="note">{_lines(section.note)}</p>' if section.note else ""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{escape(section.heading)}</h2>\n'
        f'<div class="body">\n{section.body}\n</div>{note}\n</section>'
    )


def _contents(names: list[str], sections: Sequence[Section]) -> str:
    if len(sections) < 3:
        return ""
    items = "\n".join(
        f'<li><a href="#{name}">{escape(section.heading)}</a></li>'
        for name, section in zip(names, sections, strict=True)
    )
    return f'<nav aria-label="Contents">\n<ol>\n{items}\n</ol>\n</nav>\n'


def _anchor(index: int, heading: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:40].strip("-")
    return f"s{index + 1}-{words}" if words else f"s{index + 1}"


def _lines(text: str) -> str:
    return escape(text.strip()).replace("\n", "<br>\n")
