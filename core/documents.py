"""Where evaluation text comes from, as documents."""

import re
from pathlib import Path

from .data import dataset_text, row_text
from .errors import ExciseError
from .files.reading import as_path, lines_of, parse_json, read_text


FILES = (".txt", ".md", ".rst", ".text", ".json", ".jsonl", ".csv")
"""File names that are meant as files even where there is none."""

BUILTIN = "builtin"

PROMPT_KEYS = ("prompt", "clean", "text")
"""Names under which rows of prompts hold their text."""


def builtin_text() -> str:
    """Return some 65,000 words of technical English, from `pydoc_data.topics`.

    The text differs a little between Python versions, so compare numbers of one version only.
    """
    return "\n\n".join(_topics())


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def is_file(source: str) -> bool:
    """Tell a file from a `datasets` id."""
    path = as_path(source)
    return path.is_file() or path.suffix in FILES


def read_documents(source: str, limit: int | None = None, split: bool = False) -> list[str]:
    """Read documents.

    Args:
        source: `builtin`; a `.jsonl` file with a `text` (or `page`) per row, each a document; any
            other text file, which is one document; or a `datasets` id.
        limit: How many documents of a dataset at most.
        split: Whether a text file with headings as WikiText has them (` = Title = `) is split into
            its articles.

    Raises:
        ExciseError: The source is missing, empty, or no text.
    """
    if source == BUILTIN:
        return _topics()
    if not is_file(source):
        return [text for text in dataset_text(source, limit) if text.strip()]
    text = read_text(source)
    if Path(source).suffix == ".jsonl":
        return [_text_of(line, f"{source}, line {i}") for i, line in lines_of(text)]
    parts = re.split(r"(?m)^(?= = [^=\n]+ = \n)", text) if split else [text]
    return [part for part in parts if part.strip()]


def read_texts(source: str, keys: tuple[str, ...] = PROMPT_KEYS) -> list[str]:
    """Read short texts: a line each of a text file, a row each of a JSONL file or a dataset.

    Args:
        source: File or `datasets` id.
        keys: Names under which a JSONL row may hold its text; the value is a text, or an object
            with a `text` of its own, as in RealToxicityPrompts.

    Raises:
        ExciseError: Missing, empty, or a row without any of the keys; names the line.
    """
    if not is_file(source):
        return [text for text in dataset_text(source, keys=keys) if text.strip()]
    lines = lines_of(read_text(source))
    if Path(source).suffix not in (".jsonl", ".json"):
        if objects := [i for i, line in lines if line.lstrip().startswith('{"')]:
            raise ExciseError(
                f"{source}, line {objects[0]} begins like JSON: call the file .jsonl, or drop it"
            )
        return [line.strip() for _, line in lines]
    return [_text_of(line, f"{source}, line {i}", keys) for i, line in lines]


def _text_of(line: str, where: str, keys: tuple[str, ...] = ("text", "page")) -> str:
    row = parse_json(line, where)
    found = next((text for key in keys if (text := row_text(row, key))), "")
    if not found.strip():
        raise ExciseError(f'{where}: a row needs {{"{keys[0]}": "some text"}}')
    return found
