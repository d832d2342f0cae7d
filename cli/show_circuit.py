"""A circuit folder for a terminal, and as files for people and for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files.json_text import json_text
from . import options as shared
from .terminal import say


if TYPE_CHECKING:
    from ..circuits.circuit import Circuit


WRITTEN = {"html": "page", "svg": "drawing", "dot": "graph", "eap_ig": "EAP-IG file"}
"""What kinds of files the options of `show` write: see `core.output`."""


def show_circuit(
    folder: Path, top: int, as_json: bool, files: dict[str, Path | None], overwrite: bool = False
) -> None:
    """Print a circuit, and write it as `html`, `svg`, `dot` or `eap_ig` where a path is given.

    Raises:
        ExciseError: A damaged folder, a grain that cannot be drawn, a path that cannot be written.
    """
    from ..circuits.circuit import Circuit

    circuit = Circuit.from_pretrained(folder)
    for kind, path in files.items():
        if path is not None:
            export(circuit, kind, path, overwrite)
    if as_json:
        say(json_text({**circuit.as_json(), "written": {
            kind: str(path) for kind, path in files.items() if path is not None
        }}))  # fmt: skip
        return
    say(described(circuit, top))
    for warning in circuit.config["warnings"]:
        say(f"warning: {warning}")
    for path in files.values():
        if path is not None:
            say(f"written to {path}")


def export(circuit: "Circuit", kind: str, path: Path, overwrite: bool = False) -> None:
    """Write a circuit in one layout.

    Raises:
        ExciseError: A grain that has no such layout, or the file cannot be written.
    """
    from ..circuits import page
    from ..circuits.exchange import write_eap_ig
    from ..core.files.output import whole_file

    if kind == "eap_ig":
        write_eap_ig(circuit, path, overwrite)
        return
    drawn = {
        "html": page.circuit_html, "svg": page.circuit_svg_of, "dot": page.circuit_dot_of,
    }  # fmt: skip
    whole_file(path, drawn[kind](circuit), overwrite, WRITTEN[kind])


def described(circuit: "Circuit", most: int = 12) -> str:
    """Render a circuit for a terminal: the evidence, and its largest components."""
    rows = [
        [
            name.replace("_", " "),
            f"{row['value']:.3f}",
            _interval(row["ci"][0], row["ci"][1], ".3f"),
        ]
        for name, row in circuit.measured.items()
    ]
    lines = [str(circuit), "", shared.aligned(("on test prompts", "value", "95 % interval"), rows)]
    if circuit.level.name not in circuit.scores:
        rows = [[name, str(n)] for name, n in circuit.by_matrix().items() if n]
        return "\n".join([*lines, "", shared.aligned(("matrix", "weights kept"), rows)])
    kept = sorted((c for c in circuit.components() if c.kept), key=lambda c: -abs(c.score))
    rows = [[c.name, f"{c.score:+.4g}", _interval(c.low, c.high, "+.4g")] for c in kept[:most]]
    lines += ["", shared.aligned((circuit.level.name, "score", "95 % interval"), rows)]
    if len(kept) > most:
        lines.append(f"and {len(kept) - most} more")
    return "\n".join(lines)


def _interval(low: float | None, high: float | None, form: str) -> str:
    """Render an interval; nothing where there is none, as of a single prompt."""
    return "" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
