"""A circuit as a picture: rows of plain numbers for the page, SVG and DOT writers of viz."""

from typing import TYPE_CHECKING, Any

import torch

from ..viz.circuit.data import CircuitPicture, CurvePoint, EdgeRow, Example, Metric, Node
from ..viz.circuit.dot import circuit_dot
from ..viz.circuit.page import circuit_page
from ..viz.circuit.svg import circuit_svg
from .graph import name


if TYPE_CHECKING:
    from .circuit import Circuit

MOST_EDGES = 20_000
"""Edges on the page, those of the largest scores: more are no picture any more."""

EDGES_OF_NODES = 300
"""Edges drawn between the nodes of a circuit of nodes."""

_NOTES = {
    "faithfulness": "share of the answer that the circuit alone keeps; 1 is the whole model",
    "completeness": "the same of the model without the circuit; near 0 where nothing was missed",
    "accuracy": "prompts that the circuit alone gets right",
    "cpr": "area under faithfulness over kept fractions, ranked by signed score",
    "cmd": "area under |1 - faithfulness|, ranked by size of the score; 0 is best",
    "random": "faithfulness of random circuits with as many parts of each kind in each layer",
    "stability": "overlap of circuits of this size from resampled prompts (Jaccard)",
    "minimality": "share of the parts without any of which the circuit would be less faithful",
}


def circuit_html(circuit: "Circuit") -> str:
    """Return the circuit's page: one HTML file that needs nothing else."""
    return circuit_page(picture(circuit))


def circuit_svg_of(circuit: "Circuit") -> str:
    """Return the circuit's graph as one SVG element."""
    return circuit_svg(picture(circuit))


def circuit_dot_of(circuit: "Circuit") -> str:
    """Return the circuit's graph as Graphviz text."""
    return circuit_dot(picture(circuit))


def picture(circuit: "Circuit") -> CircuitPicture:
    """Turn a circuit into the rows that the writers of viz draw."""
    config, graph = circuit.config, circuit.shape.graph
    level = "edges" if circuit.level.name == "edges" else "nodes"
    metrics = config["metrics"]
    answer = circuit.examples[0]["answer"] if circuit.examples else ""
    found = metrics["faithfulness"]
    measured = circuit.measured
    samples, (low, high) = config["samples"], found["ci"]
    interval = "" if None in (low, high) else f" [{low:.2f}, {high:.2f}]"
    return CircuitPicture(
        title=f"The circuit for {config['task']} in {config['model']}",
        subtitle=(
            f"{circuit.size} of {len(circuit.in_circuit)} {circuit.level.name} keep "
            f"{found['value']:.2f}{interval} of the answer's "
            f"logit difference when all else is replaced ({config['ablation']} ablation)."
        ),
        footer=(
            f"Scores: {config['method']}, {samples['train']} prompts; size chosen on "
            f"{samples['validation']}, everything measured on {samples['test']} others. Model hash "
            f"{config['model_hash']}, test data {config['data']['test']}."
        ),
        layers=graph.n_layers,
        heads=graph.n_heads,
        kv_groups=graph.n_kv_heads,
        level=level,
        nodes=_nodes(circuit),
        edges=_edges(circuit),
        curve=_curve(circuit),
        size=circuit.size,
        metrics=[_metric(key, measured[key]) for key in _NOTES if key in measured],
        examples=[Example(e["tokens"], e["attention"]) for e in circuit.examples],
        warnings=list(config["warnings"]),
        answer=answer,
    )


def _metric(key: str, row: dict[str, Any]) -> Metric:
    low, high = row["ci"]
    shown = key.upper() if key in ("cpr", "cmd") else key
    rounded = (None, None) if None in (low, high) else (round(low, 3), round(high, 3))
    return Metric(shown, round(row["value"], 3), *rounded, note=_NOTES[key])


def _nodes(circuit: "Circuit") -> list[Node]:
    writers = circuit.shape.graph.writers
    rows = circuit.components("nodes") if "nodes" in circuit.scores else None
    nodes = [Node("input", "embed", 0, 0, 0.0, None, None, True)]
    for index, writer in enumerate(writers[1:]):
        row = rows[index] if rows else None
        score, low, high = (row.score, row.low, row.high) if row else (0.0, None, None)
        kept = row.kept if row else writer in circuit.nodes()
        unit = writer[2] if writer[0] == "head" else 0
        nodes.append(Node(name(writer), writer[0], writer[1], unit, score, low, high, kept))
    return [*nodes, Node("logits", "logits", 0, 0, 0.0, None, None, True)]


def _edges(circuit: "Circuit") -> list[EdgeRow]:
    """Return the largest edges; of a circuit of nodes those between its nodes."""
    graph, found = circuit.shape.graph, circuit.scores.get("edges")
    if found is None:
        return []
    kept, most, own = circuit.in_circuit, MOST_EDGES, set(circuit.nodes())
    if circuit.level.name != "edges":
        inside = torch.zeros(len(graph.writers), dtype=torch.bool)
        inside[[0, *(graph.writer_index[node] for node in own)]] = True
        fed = graph.feeds.float() @ inside.float() > 0
        fed[-1] = True
        kept, most = (inside[:, None] & fed[None, :])[graph.is_edge], EDGES_OF_NODES
    weight = found.mean.abs() if circuit.level.name == "edges" else found.mean.abs() * kept
    order = weight.argsort(descending=True)[: min(most, int((weight > 0).sum()))].sort().values
    at = graph.is_edge.nonzero()[order].tolist()
    columns = *found.columns(order), kept[order].tolist()
    rows = []
    for (source, reader_at), *numbers in zip(at, *columns, strict=True):
        reader = graph.readers[reader_at]
        fed_by = graph.node_of(reader)
        # a group's line is drawn from any of its heads, here from one that is in the circuit
        nodes = [node for node in fed_by if node in own] or list(fed_by)
        target = graph.writer_index[nodes[0]] if nodes else len(graph.writers)
        rows.append(EdgeRow(source, target, reader[0], *numbers))
    return rows


def _curve(circuit: "Circuit") -> list[CurvePoint]:
    metrics = circuit.config["metrics"]
    own = {**metrics["faithfulness"], "size": circuit.size}
    own["random"] = metrics["random"].get("value")
    rows = {row["size"]: row for row in metrics["curves"][circuit.config["rank"]]}
    rows[circuit.size] = own
    return [
        CurvePoint(size, row["value"], row["ci"][0], row["ci"][1], row.get("random"))
        for size, row in sorted(rows.items())
        if size > 0
    ]
