"""A circuit: scores of components, which of them belong to it, and the evidence that they do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.bootstrap import resampled_sums
from ..core.errors import ExciseError
from ..core.families import ModelView
from ..core.files.artefact import damage, read_artefact, write_artefact
from ..core.files.escape import markdown
from ..core.files.schema import (
    NUMBER,
    OBJECT,
    TEXT,
    Array,
    Kind,
    check_tensors,
    maybe,
    one_of,
    whole,
)
from ..core.identity import model_hash
from ..core.statistics import mean_interval
from .ablation import zeroed
from .faithfulness import jaccard
from .graph import Edge, Graph, Writer, name
from .levels import LEVELS, RANKS, Level, Shape, get_level


RESAMPLES = 200
"""Bootstrap draws of the samples behind stability."""

_BOUND = maybe(Kind("a number", lambda value: type(value) in (int, float)))
_METRIC = {"value?": maybe(NUMBER), "ci?": (_BOUND, _BOUND)}
_POINT = {"size": whole(), "value": NUMBER, "ci": (_BOUND, _BOUND), "random?": maybe(NUMBER)}

CONFIG = {
    **dict.fromkeys(("model", "model_hash", "task", "method", "ablation"), TEXT),
    "shape": (whole(1, 2048), whole(1, 2048), whole(1, 2048), whole(1, 2**24)),
    "d_model?": whole(1, 2**24),
    "made_from?": OBJECT,
    "matrices?": [(TEXT, whole(1))],
    "level": one_of(LEVELS),
    "rank": one_of(RANKS),
    "samples": dict.fromkeys(("train", "validation", "test"), whole()),
    "data": {"test": TEXT, "*": TEXT},
    "warnings": [TEXT],
    "metrics": {
        "faithfulness": {"value": NUMBER, "ci": (_BOUND, _BOUND)},
        "ablations": {"*": _METRIC},
        "curves": {rank: [_POINT] for rank in RANKS},
        "random": _METRIC,
        "*": _METRIC,
    },
    "examples?": [{"tokens": [TEXT], "answer": TEXT, "attention": {"*": [[NUMBER]]}}],
}
"""What a circuit folder's config has to say."""

WRITERS = 20_000
"""Heads and MLPs of a model at most: a table of all edges between them still fits into memory."""


_BOUNDS = ("mean", "low", "high")


@dataclass(frozen=True)
class Scores:
    """Mean scores of one grain's components, each (components,), with 95 % bounds if there are."""

    mean: Float[Tensor, " components"]
    low: Float[Tensor, " components"] | None = None
    high: Float[Tensor, " components"] | None = None

    def columns(self, order: Tensor | slice = slice(None)) -> list[list[Any]]:
        """Return the three as lists, in an order; bounds that there are not are None."""
        mean = self.mean[order].tolist()
        ends = ([None] * len(mean) if t is None else t[order].tolist()
                for t in (self.low, self.high))  # fmt: skip
        return [mean, *ends]


@dataclass(frozen=True)
class Component:
    """One component as a view: for printing and drawing; arrays are the truth."""

    name: str
    score: float
    low: float | None
    high: float | None
    kept: bool

    def as_json(self) -> dict[str, Any]:
        """Return name, score and interval."""
        return {"name": self.name, "score": self.score, "ci": [self.low, self.high]}


@dataclass(frozen=True)
class Circuit:
    """What `find_circuit` returns and `excise circuit -o` writes.

    Arrays are flat, in the order of the grain's components (`Level.names`): nodes by layer, heads
    before the MLP; neurons by layer; edges by writer, then reader, as the true entries of
    `Graph.is_edge`.
    """

    config: dict[str, Any]
    """Model, shape, task, method, grain, ablation, data, and under `metrics` the evidence."""
    in_circuit: Bool[Tensor, " components"]
    scores: Mapping[str, Scores]
    """By grain: that of the circuit, and others that came with it."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Test prompts as tokens with the attention of the circuit's heads, for the page."""

    @property
    def level(self) -> Level:
        """The grain of the circuit."""
        return get_level(self.config["level"])

    @property
    def shape(self) -> Shape:
        """The numbers of layers, heads, groups and hidden units."""
        layers, heads, groups, d_mlp = self.config["shape"]
        matrices = tuple((name, n) for name, n in self.config.get("matrices", ()))
        return Shape(Graph(layers, heads, groups), d_mlp, matrices)

    @property
    def measured(self) -> dict[str, dict[str, Any]]:
        """The metrics that are a number with an interval, by name."""
        rows: dict[str, Any] = self.config["metrics"]
        return {k: r for k, r in rows.items() if "ci" in r and r.get("value") is not None}

    @property
    def size(self) -> int:
        """How many components are in the circuit."""
        return int(self.in_circuit.sum())

    def __str__(self) -> str:
        found = self.config["metrics"].get("faithfulness")
        said = f", faithfulness {found['value']:.3f}" if found else ""
        return (
            f"Circuit({self.config['task']} in {self.config['model']} by {self.config['method']}: "
            f"{self.size} of {len(self.in_circuit)} {self.level.name}{said})"
        )

    def components(self, level: str | None = None) -> list[Component]:
        """Return the components of a grain as views, in order.

        Raises:
            ExciseError: This circuit holds no scores of the grain.
        """
        wanted = get_level(level or self.config["level"])
        if wanted.name not in self.scores:
            raise ExciseError(f"this circuit holds no scores of {wanted.name}: find one of them")
        found = self.scores[wanted.name]
        kept = self.in_circuit if wanted is self.level else self._kept_nodes(wanted)
        columns = *found.columns(), kept.tolist()
        return [Component(*row) for row in zip(wanted.names(self.shape), *columns, strict=True)]

    def edges(self) -> list[tuple[Edge, float]]:
        """Return the circuit's edges with their scores; empty for other grains."""
        if self.level.name != "edges":
            return []
        graph = self.shape.graph
        ids = list(graph.edges(graph.is_edge))
        chosen = self.in_circuit.nonzero()[:, 0].tolist()
        return [(ids[i], float(self.scores["edges"].mean[i])) for i in chosen]

    def nodes(self) -> list[Writer]:
        """Return the heads and MLPs of the circuit: its own, or those that its edges touch."""
        kept = self._kept_nodes(get_level("nodes"))
        return [w for w, k in zip(self.shape.graph.writers[1:], kept.tolist(), strict=True) if k]

    def by_matrix(self) -> dict[str, int]:
        """Return how many weights of each matrix are in a weight circuit; empty for others."""
        if self.level.name != "weights":
            return {}
        matrices = self.shape.matrices
        parts = self.in_circuit.split([n for _, n in matrices])
        return {name: int(p.sum()) for (name, _), p in zip(matrices, parts, strict=True)}

    def jaccard(self, other: "Circuit") -> float:
        """Return the overlap with another circuit of the same grain and shape.

        Raises:
            ExciseError: They differ in grain or shape.
        """
        self.check_comparable(other)
        return jaccard(self.in_circuit, other.in_circuit)

    def check_comparable(self, other: "Circuit") -> None:
        """Refuse a circuit of another grain, or of a model of another shape.

        Raises:
            ExciseError: Names both.
        """
        for key in ("level", "shape"):
            if self.config[key] != other.config[key]:
                raise ExciseError(
                    f"the {key} is {self.config[key]} here and {other.config[key]} there: compare "
                    "circuits of one grain in models of one shape"
                )

    def check_model(self, model: Any) -> None:
        """Refuse a model that is not the one the circuit was found in.

        Raises:
            ExciseError: The hash of its weights differs.
        """
        if model_hash(model) != self.config["model_hash"]:
            raise ExciseError(
                f"this circuit is of {self.config['model']} (hash "
                f"{self.config['model_hash'][:8]}), and the model's weights differ: find it anew"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the circuit as JSON values: components, size, and metrics with `value`, `ci`."""
        rows: dict[str, Any] = {"nodes": [name(node) for node in self.nodes()], "edges": []}
        if self.level.name in self.scores:
            kept = [c.as_json() for c in self.components() if c.kept]
            rows[self.level.name] = sorted(kept, key=lambda row: -abs(row["score"]))
        else:
            rows[self.level.name] = self.by_matrix()
        return {**rows, "size": self.size, **self.config["metrics"], "config": {
            key: value for key, value in self.config.items() if key != "metrics"
        }}  # fmt: skip

    def save_pretrained(self, path: str | Path, overwrite: bool = False, page: bool = True) -> None:
        """Write the folder: config, arrays, README and, unless told otherwise, `circuit.html`.

        Raises:
            ExciseError: The path is taken, or cannot be written.
        """
        from .page import circuit_html

        tensors = {"in_circuit": torch.from_numpy(np.packbits(self.in_circuit.numpy()))}
        for level, found in self.scores.items():
            kept = {key: tensor for key, tensor in vars(found).items() if tensor is not None}
            tensors |= {f"{level}/{key}": tensor for key, tensor in kept.items()}
        readme = (
            f"# A circuit for {markdown(self.config['task'])}\n\n{markdown(self)}\n\nMade by "
            "excise. Open `circuit.html`, or look at it with `excise show "
            f"{markdown(Path(path).name)}`.\n"
        )
        more = {"circuit.html": circuit_html(self)} if page else {}
        config = {**self.config, "examples": self.examples}
        write_artefact(path, "circuit", config, tensors, readme, overwrite, more)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Circuit":
        """Read such a folder.

        Raises:
            ExciseError: Missing, damaged or of another kind.
        """
        config, tensors = read_artefact(path, "circuit", CONFIG)
        examples = config.pop("examples", [])
        with damage(path):
            layers, heads, groups, _ = config["shape"]
            if heads % groups or layers * (heads + 1) > WRITERS:
                raise ExciseError(f"the shape {config['shape']} is no model's, or too large")
            circuit = cls(config, tensors.get("in_circuit", torch.empty(0)), {}, examples)
            n = circuit.level.count(circuit.shape)  # counted, and nothing of that size made
            arrays, sizes = {"in_circuit": Array("bits", "bytes")}, {"bytes": -(-n // 8)}
            for level in sorted({name.split("/")[0] for name in tensors} - {"in_circuit"}):
                sizes[level] = get_level(level).count(circuit.shape)
                kept = _BOUNDS if f"{level}/low" in tensors else _BOUNDS[:1]
                arrays |= {f"{level}/{key}": Array("float", level) for key in kept}
            check_tensors(tensors, arrays, sizes)
        bits = np.unpackbits(tensors["in_circuit"].numpy(), count=n).astype(bool)
        scores = {
            level: Scores(
                tensors[f"{level}/mean"], tensors.get(f"{level}/low"), tensors.get(f"{level}/high")
            )
            for level in sizes.keys() - {"bytes"}
        }
        return replace(
            circuit, in_circuit=torch.from_numpy(bits), scores=dict(sorted(scores.items()))
        )

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Run a model with the circuit alone: what every other component gives is zero.

        Args:
            model: The model the circuit was found in. It is as before when the block ends.

        Raises:
            ExciseError: A circuit of edges, which need counterfactual prompts to be cut; or a
                model of another shape.
        """
        view = ModelView.of(model)
        if Shape.of(view).graph != self.shape.graph or view.d_mlp != self.shape.d_mlp:
            raise ExciseError(
                f"this circuit is of {self.config['model']}, and the model has another shape: "
                "apply it to that one"
            )
        kept = self.level.kept(self.shape, self.in_circuit)
        with zeroed(view, kept):
            yield model

    def _repr_html_(self) -> str:
        """Draw the circuit in a notebook."""
        from .page import circuit_svg_of

        return circuit_svg_of(self)

    def _kept_nodes(self, wanted: Level) -> Tensor:
        """Return which nodes a circuit of another grain touches; for other grains, none."""
        if wanted.name != "nodes":
            return torch.zeros(wanted.count(self.shape), dtype=torch.bool)
        graph, kept = self.shape.graph, self.level.kept(self.shape, self.in_circuit)
        grid = torch.zeros(graph.n_layers, graph.n_heads + 1, dtype=torch.bool)
        if kept.heads is not None:
            grid[:, :-1] = kept.heads
        if kept.mlps is not None:
            grid[:, -1] = kept.mlps
        if kept.neurons is not None:
            grid[:, -1] = kept.neurons.any(1)
        if kept.edges is not None:
            return kept.edges.any(1)[1:]
        return grid.flatten()


def bootstrap(
    samples: Float[Tensor, "samples components"], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Scores, Float[Tensor, "resamples components"] | None]:
    """Return mean scores with 95 % intervals (Student's), and the means of all resamples.

    Neither intervals nor resamples of a single sample.

    Args:
        samples: Per-sample scores.
        resamples: Bootstrap draws of the samples.
        seed: Of the draws.
    """
    samples = samples.float()
    bounds = mean_interval(samples)
    if bounds is None:
        return Scores(samples.mean(0)), None
    sums = resampled_sums(samples.cpu().numpy(), seed, resamples)
    return Scores(samples.mean(0), *bounds), torch.from_numpy(sums / len(samples))
