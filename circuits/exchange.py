"""Circuits as other tools write them: the JSON of EAP-IG and of MIB's circuit track.

There every head has keys and values of its own. A KV group's edge is written as one edge for each
head of the group, with an equal share of the score, and read back as their sum; it is in the
circuit if one of them is. "Neurons" of those tools are output dimensions of a node, not hidden
units of an MLP, and are not exchanged.
"""

from pathlib import Path
from typing import Any

import torch

from ..core.errors import ExciseError
from ..core.files.json_text import json_text
from ..core.files.output import whole_file
from ..core.files.reading import read_json
from ..core.files.schema import NUMBER, Kind, check, whole
from .circuit import Circuit
from .graph import Graph, Reader, name
from .scores import Attribution


_SCORE = Kind("a number that float32 holds", lambda value: NUMBER.fits(value) and abs(value) < 1e38)
_INSIDE = Kind("true or false", lambda value: value in (True, False, None))
_PART = {"score?": _SCORE, "in_graph?": _INSIDE}
LAYOUT = {
    "cfg": {"n_layers": whole(1), "n_heads": whole(1)},
    "nodes": {"*": _PART},
    "edges": {"*": _PART},
}
"""What is read of that JSON."""


def to_eap_ig(circuit: Circuit) -> dict[str, Any]:
    """Return a circuit of nodes, KV groups or edges in EAP-IG's JSON layout.

    Every node and edge of the model is there, with a score where the circuit has one. Their reader
    asks for a score of every edge: one that has none gets its membership, 1 or 0, in equal shares.
    An edge is inside only if both of its ends are: a KV group's may be for some of its heads.

    Raises:
        ExciseError: A circuit of neurons or weights, or one without the width of its model.
    """
    graph = circuit.shape.graph
    if circuit.level.name not in ("nodes", "kv-groups", "edges"):
        raise ExciseError(
            f"a circuit of {circuit.level.name} has no place in EAP-IG's layout, whose neurons are "
            "output dimensions: use nodes, kv-groups or edges"
        )
    if "d_model" not in circuit.config:
        raise ExciseError(
            "this circuit does not say how wide its model is, which EAP-IG asks for: an older "
            "excise found it, find it again"
        )
    inside = {name(node): True for node in (("embed",), *circuit.nodes(), ("logits",))}
    nodes: dict[str, Any] = {
        name(node): {"in_graph": name(node) in inside} for node in (*graph.writers, ("logits",))
    }
    if "nodes" in circuit.scores:  # of all but the input, which their reader then always keeps
        for one in circuit.components("nodes"):
            nodes[one.name]["score"] = one.score
    ids = list(graph.edges(graph.is_edge))
    found = circuit.scores.get("edges")
    scores = [None] * len(ids) if found is None else found.mean.tolist()
    chosen = circuit.in_circuit.tolist() if circuit.level.name == "edges" else [True] * len(ids)
    edges = {}
    for (writer, reader), score, kept in zip(ids, scores, chosen, strict=True):
        heads = _heads(graph, reader)
        for head in heads:
            within = kept and name(writer) in inside and head.split("<")[0] in inside
            edges[f"{name(writer)}->{head}"] = {
                "score": (float(within) if score is None else score) / len(heads),
                "in_graph": within,
            }
    cfg = {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads, "parallel_attn_mlp": False,
        "d_model": circuit.config["d_model"],
    }  # fmt: skip
    return {"cfg": cfg, "nodes": nodes, "edges": edges}


def write_eap_ig(circuit: Circuit, path: str | Path, overwrite: bool = False) -> None:
    """Write that layout to a file.

    Args:
        circuit: Of nodes or edges.
        path: The file.
        overwrite: Whether an existing file of this layout may be replaced.

    Raises:
        ExciseError: As `to_eap_ig`, or the file cannot be written.
    """
    whole_file(path, json_text(to_eap_ig(circuit)) + "\n", overwrite, "EAP-IG file")


def read_eap_ig(path: str | Path, graph: Graph) -> Attribution:
    """Read scores of nodes and edges from EAP-IG's JSON, for a model of a given shape.

    A file without scores, with `in_graph` alone, gives 1 inside and 0 outside.

    Args:
        path: The file.
        graph: Of the model that the scores belong to.

    Returns:
        One sample of scores: of edges if there are any, and of nodes if they have scores.

    Raises:
        ExciseError: No such file, no such layout, another shape, or an edge that is not there.
    """
    found = read_json(path)
    try:
        check(found, LAYOUT, "it")
    except ExciseError as error:
        raise ExciseError(f"{path} is no circuit in EAP-IG's layout: {error}") from error
    cfg, nodes, edges = found["cfg"], found["nodes"], found["edges"]
    shape = (cfg["n_layers"], cfg["n_heads"])
    if shape != (graph.n_layers, graph.n_heads):
        raise ExciseError(
            f"{path} is of a model of {shape[0]} layers and {shape[1]} heads, and this one has "
            f"{graph.n_layers} and {graph.n_heads}"
        )
    columns = {}
    for writer, reader in graph.edges(graph.is_edge):
        names = [f"{name(writer)}->{head}" for head in _heads(graph, reader)]
        if missing := [edge for edge in names if edge not in edges]:
            raise ExciseError(f"{path} has no edge {missing[0]!r}: it is of another kind of model")
        columns[writer, reader] = _score([edges[edge] for edge in names])
    scored = all("score" in nodes.get(name(w), ()) for w in graph.writers[1:])
    grid = torch.tensor(
        [float(nodes[name(w)]["score"]) for w in graph.writers[1:]] if scored else []
    )
    grid = grid.view(1, -1, graph.n_heads + 1)
    return Attribution(
        heads=grid[..., :-1] if scored else None,
        mlps=grid[..., -1] if scored else None,
        edges=torch.tensor([list(columns.values())]),
    )


def _score(rows: list[dict[str, Any]]) -> float:
    """Return the score of an edge that is written as one or more."""
    if all("score" in row for row in rows):
        return sum(float(row["score"]) for row in rows)
    return float(any(row.get("in_graph") for row in rows))


def _heads(graph: Graph, reader: Reader) -> list[str]:
    """Return what a reader is called where every head has its own keys and values."""
    if reader[0] in ("q", "k", "v"):
        return [f"{name(writer)}<{reader[0]}>" for writer in graph.node_of(reader)]
    return [name(reader)]
