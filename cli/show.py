"""excise show: look at a relevance, a circuit or an edit."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import first_line, shown
from ..core.files.json_text import json_text
from ..core.files.reading import as_path, is_name
from . import options as shared
from .show_circuit import WRITTEN, show_circuit
from .show_edit import show_edit
from .terminal import say


if TYPE_CHECKING:
    from ..lrp.relevance import Relevance
    from ..viz.page import Section


@click.command("show", epilog="Example: excise show ioi --html ioi.html")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--top", default=10, show_default=True, help="How many components.")
@click.option("--rank", default="abs", show_default=True, help="abs or signed.")
@click.option("--html", type=shared.writable, help="Write a page with heatmaps.")
@click.option("--svg", type=shared.writable, help="Write a circuit's graph as SVG.")
@click.option("--dot", type=shared.writable, help="Write it for Graphviz.")
@click.option("--eap-ig", type=shared.writable, help="Write a circuit as EAP-IG's and MIB's JSON.")
@shared.overwrite_option
@click.option(
    "--tokenizer", type=shared.readable,
    help="Model whose tokenizer reads the tokens.  [default: its own]",
)  # fmt: skip
@click.option(
    "--against", type=click.Path(path_type=Path), help="Another relevance: rank correlation."
)
@shared.json_option
def command(
    folder: Path,
    top: int,
    rank: str,
    html: Path | None,
    svg: Path | None,
    dot: Path | None,
    eap_ig: Path | None,
    overwrite: bool,
    tokenizer: str | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Print the top components of the relevance, the circuit or the edit in FOLDER.

    Relevance and circuits can be drawn as one HTML file.
    """
    from ..core.errors import ExciseError
    from ..core.files.artefact import read_config
    from ..lrp.relevance import Relevance

    if top < 1 or rank not in ("abs", "signed"):
        raise ExciseError(f"--top {top} --rank {rank!r}: give a number from 1, and abs or signed")
    kind = read_config(folder).get("kind")
    drawn = {"svg": svg, "dot": dot, "eap_ig": eap_ig}
    of_relevance = {"tokenizer": tokenizer, "against": against}
    unfit: dict[str, Any] = {
        "edit": {"html": html, **drawn, **of_relevance}, "circuit": of_relevance,
    }.get(str(kind), drawn)  # fmt: skip
    if wrong := [f"--{name.replace('_', '-')}" for name, value in unfit.items() if value]:
        held = kind or "a model"
        raise ExciseError(f"{folder} holds {held}, which {', '.join(wrong)} cannot be given for")
    for name, path in {"html": html, **drawn}.items():
        if path is not None:
            shared.check_output(path, overwrite, WRITTEN[name])
    if kind == "edit":
        show_edit(folder, top, as_json)
        return
    if kind == "circuit":
        show_circuit(folder, top, as_json, {"html": html, **drawn}, overwrite)
        return
    relevance = Relevance.from_pretrained(folder)
    rows = {
        name: top_rows(relevance, name, top, rank)
        for name in ("heads", "kv_groups", "neurons")
        if getattr(relevance, name) is not None
    }
    agreement = compare(relevance, against) if against else {}
    if html is not None:
        draw(relevance, html, tokenizer, overwrite)
    if as_json:
        found = {"config": relevance.config, "top": rows, "rank_correlation": agreement}
        say(json_text(found))
        return
    say(str(relevance))
    for name, found in rows.items():
        say(f"\n{name:10} layer  unit      score   95 % interval")
        for row in found:
            bounds = "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
            say(f"{'':10} {row['layer']:5}  {row['unit']:4} {row['score']:10.4g}   {bounds}")
    for name, correlation in agreement.items():
        say(f"\nrank correlation of {name} with {against}: {correlation:.4f}")
    if html is not None:
        say(f"\npage written to {html}")


def top_rows(relevance: "Relevance", name: str, k: int, rank: str) -> list[dict[str, Any]]:
    """Return the k top components with their bounds, as JSON values."""
    bounds = relevance.interval(name) if has_bounds(relevance, name) else None
    return [
        {
            "layer": layer,
            "unit": unit,
            "score": value,
            "low": bounds[0][layer, unit].item() if bounds else None,
            "high": bounds[1][layer, unit].item() if bounds else None,
        }
        for layer, unit, value in relevance.top(name, k, rank)
    ]


def compare(relevance: "Relevance", against: Path) -> dict[str, float]:
    """Return Spearman's correlation with another relevance folder, by component."""
    from ..lrp.relevance import Relevance

    other = Relevance.from_pretrained(against)
    both = [
        n for n in ("heads", "neurons") if None not in (getattr(relevance, n), getattr(other, n))
    ]
    return {name: relevance.rank_correlation(other, name) for name in both}


def has_bounds(relevance: "Relevance", name: str) -> bool:
    """Say whether per-sample values of a component allow an interval."""
    return len(relevance.samples.get(name, ())) > 1


def draw(
    relevance: "Relevance", path: Path, tokenizer: str | None = None, overwrite: bool = False
) -> None:
    """Write a page with heatmaps of heads, neurons and tokens.

    Raises:
        ExciseError: The page cannot be written.
    """
    from ..viz.page import page, write_page

    config = relevance.config
    subtitle = (
        f"{config['method']} relevance ({config['aggregate']}) of the target {config['target']}, "
        f"{config['n_samples']} samples"
    )
    footer = f"model hash {config['model_hash']}, data {config['data']}"
    title = f"Relevance in {config['model']}"
    sections = relevance_sections(relevance, read_tokens(relevance, tokenizer))
    write_page(path, page(title, sections, subtitle=subtitle, footer=footer), overwrite)


def relevance_sections(
    relevance: "Relevance", texts: list[list[str]], examples: int = 3
) -> "list[Section]":
    """Draw a relevance as sections of a page."""
    from ..viz.heatmap import heatmap
    from ..viz.page import Section
    from ..viz.tokens import token_heatmap

    sections = []
    for name, unit in (("heads", "head"), ("neurons", "neuron")):
        scores = getattr(relevance, name)
        if scores is None:
            continue
        extra: dict[str, Any] = {}
        if has_bounds(relevance, name) and name == "heads":
            low, high = relevance.interval(name)
            extra = {"low": low.tolist(), "high": high.tolist(), "interval": "95 % interval"}
        picture = heatmap(scores.tolist(), title=f"Mean over samples, each {unit}",
                          column_label=unit, **extra)  # fmt: skip
        sections.append(Section(f"Relevance of {name}", picture))
    if relevance.tokens is not None:
        rows = [
            token_heatmap(text, row[: len(text)].tolist(), title=f"sample {index}")
            for index, (text, row) in enumerate(zip(texts, relevance.tokens, strict=False))
        ]
        sections.append(Section("Relevance of input tokens", "\n".join(rows[:examples])))
    return sections


def read_tokens(relevance: "Relevance", name: str | None = None) -> list[list[str]]:
    """Decode the tokens of the samples; without a tokenizer at hand, show their numbers."""
    if relevance.token_ids is None:
        return []
    rows = [[i for i in row if i >= 0] for row in relevance.token_ids.tolist()]
    tokenizer = _tokenizer(name) if name else _own_tokenizer(relevance.config["model"])
    if tokenizer is None:
        return [[f"#{i} " for i in row] for row in rows]
    return [[tokenizer.decode([i]) for i in row] for row in rows]


def _own_tokenizer(name: str) -> Any:
    """Return the tokenizer of the model that an artefact names, if it is on this machine.

    What an artefact names may be anything: nothing is fetched because of it.
    """
    from ..core.loading import EMBEDDED

    if name == EMBEDDED or (is_name(name) and Path(name).is_dir()):
        return _tokenizer(name)
    say(
        f"tokens are shown as numbers: {shown(name)} is no folder here, so give --tokenizer",
        err=True,
    )
    return None


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from ..core.loading import EMBEDDED, model_folder

    try:
        local = name == EMBEDDED or as_path(name).exists()
        source = model_folder(name) if local else name
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # tokenizers raises no class of its own; there is a way without
        say(f"tokens are shown as numbers: no tokenizer at {shown(name)} "
                   f"({first_line(error)})", err=True)  # fmt: skip
        return None
