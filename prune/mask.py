"""Cut the least relevant components: choose a mask, try it, or take it out for good."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.errors import ExciseError, unknown_name
from ..core.families import FAMILIES, ModelView, plain_linear
from ..core.files.artefact import damage, read_artefact, write_artefact
from ..core.files.schema import NUMBER, Array, check_tensors, one_of, whole
from ..core.held import changed
from ..core.provenance import KEY, Seen
from ..lrp.methods import METHODS
from ..lrp.relevance import Relevance
from ..lrp.scope import unreached
from .packed import packed, unpacked
from .scopes import keep_row


Component = Literal["heads", "neurons", "weights"]
COMPONENTS: tuple[Component, ...] = ("heads", "neurons", "weights")
Rank = Literal["abs", "signed"]
RANKS: tuple[Rank, ...] = ("abs", "signed")
UNTOLD = Seen(unknown="the mask does not say which texts it was chosen with")

CONFIG = {
    "component": one_of((*COMPONENTS, "layers")),
    "shapes": {"*": [whole(1, 2**31)]},
    "sparsity": NUMBER,
}
"""What a mask folder's config has to say."""


@dataclass(frozen=True)
class Mask:
    """Which components stay."""

    component: Component | Literal["layers"]
    keep: Mapping[str, Tensor]
    """True where a component stays: one tensor (layers, units) under the component's name, of whole
    layers (layers,), or one per weight matrix under its parameter's name."""
    seen: Seen = UNTOLD
    """Texts that it was chosen with."""

    @property
    def sparsity(self) -> float:
        """The share that goes, counted."""
        kept = sum(int(tensor.sum()) for tensor in self.keep.values())
        return 1 - kept / sum(tensor.numel() for tensor in self.keep.values())

    def __str__(self) -> str:
        total = sum(tensor.numel() for tensor in self.keep.values())
        gone = total - sum(int(tensor.sum()) for tensor in self.keep.values())
        return f"{gone:,} of {total:,} {self.component} ({100 * self.sparsity:.2f} %)"

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the mask to a folder: a bit per component, a summary for a human.

        Raises:
            ExciseError: The path is taken, or cannot be written.
        """
        shapes = {name: list(tensor.shape) for name, tensor in self.keep.items()}
        config = {"component": self.component, "shapes": shapes, "sparsity": self.sparsity,
                  KEY: self.seen.to_json()}  # fmt: skip
        bits = {name: packed(keep) for name, keep in self.keep.items()}
        readme = f"# Mask\n\nWhich components of a model stay: {self} are gone.\n"
        write_artefact(path, "mask", config, bits, readme, overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Mask":
        """Read a mask back.

        Raises:
            ExciseError: No mask, or a damaged one.
        """
        config, bits = read_artefact(path, "mask", CONFIG)
        shapes = config["shapes"]
        with damage(path):
            check_tensors(bits, dict.fromkeys(shapes, Array("bits", "_")))
            for name, shape in shapes.items():
                if bits[name].numel() != -(-math.prod(shape) // 8):
                    raise ExciseError(f"the tensor {name} has no bit for each of {shape}")
            if not shapes:
                raise ExciseError("it holds no component")
        keep = {name: unpacked(bits[name], shapes[name]) for name in shapes}
        return cls(config["component"], keep, Seen.read(config, f"the mask {path}"))

    def apply_(self, model: Any) -> None:
        """Set what goes to zero in the model's own weights. For good: there is no undo here.

        A neuron goes with its row in the linears before it and its column in the one behind; a
        head with its rows of the queries and its columns of the output projection (keys and
        values may serve other heads). Biases of removed rows go too.
        """
        with torch.no_grad():
            for tensor, gone in self._regions(ModelView.of(model)):
                tensor.masked_fill_(gone.to(tensor.device), 0.0)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Have the model without the components for the length of a `with` block.

        Raises:
            ExciseError: Another thread has the model in a scope, mask or edit.
        """
        regions = lambda: (  # noqa: E731 - of the model as it is when a change is made
            (tensor, gone.to(tensor.device).expand_as(tensor), 0.0)
            for tensor, gone in self._regions(ModelView.of(model))
        )
        with changed(model, regions):
            yield model

    def _regions(self, view: ModelView) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield weight tensors with a boolean tensor, broadcast to them, of what goes."""
        if self.component == "layers":
            raise ExciseError("whole layers are not set to zero: take them out with shrink")
        parameters: dict[str, Tensor] = dict(view.model.named_parameters())
        self.check(view)
        if self.component == "weights":
            for name, keep in self.keep.items():
                yield parameters[name], ~keep
            return
        gone: Tensor
        before: tuple[Any, ...]
        for layer, keep in zip(view.layers, self.keep[self.component], strict=True):
            if self.component == "neurons":
                before, behind, gone = layer.mlp_in, layer.mlp_out, ~keep
            else:
                before = (layer.query_key[0],)
                behind, gone = layer.attention_out, (~keep).repeat_interleave(view.head_dim)
            yield plain_linear(behind, view).weight, gone[None, :]
            for linear in before:
                yield plain_linear(linear, view).weight, gone[:, None]
                if linear.bias is not None:
                    yield linear.bias, gone

    def check(self, view: ModelView) -> None:
        """Refuse a model of another shape, before anything is changed."""
        n = len(view.layers)
        fitting: dict[str, tuple[int, ...]]
        fitting = {"heads": (n, view.n_heads), "neurons": (n, view.d_mlp), "layers": (n,)}
        if self.component == "weights":
            fitting = {name: tuple(p.shape) for name, p in view.model.named_parameters()}
        for name, keep in self.keep.items():
            if tuple(keep.shape) != fitting.get(name):
                raise ExciseError(
                    f"the mask is of another model: {name} is {tuple(keep.shape)} in it, and "
                    f"{fitting.get(name, 'nothing')} in this model"
                )


def select(relevance: Relevance, component: Component, sparsity: float, rank: Rank = "abs") -> Mask:
    """Choose what stays: all but the lowest share of scores.

    Heads and neurons are compared over all layers; weights within each row of their matrix (one
    output unit), as is usual for unstructured pruning.

    Args:
        relevance: Scores of these components.
        component: `heads`, `neurons` or `weights`.
        sparsity: Share that goes, from 0 to below 1; the count is rounded to the nearest.
        rank: `abs` cuts what matters least in either direction, `signed` the lowest values first,
            among them what speaks against the target.

    Raises:
        ExciseError: Unknown words, a sparsity out of range, or scores that are not there.
    """
    if component not in COMPONENTS:
        raise unknown_name("component", component, COMPONENTS)
    if rank not in RANKS:
        raise unknown_name("rank", rank, RANKS)
    check_sparsity(sparsity)
    if component == "weights":
        if not relevance.weights:
            raise ExciseError("this relevance holds no weights: score again with --weights '*'")
        check_scored(relevance)
        keep = {
            name: keep_rows(scores, sparsity, rank) for name, scores in relevance.weights.items()
        }
        return Mask(component, keep)
    return select_overall(relevance.get(component), component, sparsity, rank, relevance.seen)


def check_scored(relevance: Relevance) -> None:
    """Refuse matrices whose scores are zero by their method's definition: they rank nothing.

    Raises:
        ExciseError: Names one, and what has scores.
    """
    method = METHODS.get(relevance.config.get("method", ""))
    family = FAMILIES.get(relevance.config.get("family", ""))
    if method is None or family is None:
        return
    parts = tuple(f".{path}.weight" for path in unreached(method.rules, family))
    if parts and (found := [name for name in relevance.weights if name.endswith(parts)]):
        more = f" and {len(found) - 1} more matrices" if len(found) > 1 else ""
        have = "have" if more else "has"
        raise ExciseError(
            f"{found[0]}{more} {have} no scores under {relevance.config['method']!r}, which holds "
            "what they feed constant: score again with --method lrp, or only others, as in "
            f"--weights '*{family.attention_out}' --weights '*{family.mlp_out}'"
        )


def select_overall(
    scores: Float[Tensor, "layers units"],
    component: Component,
    sparsity: float,
    rank: Rank = "signed",
    seen: Seen = UNTOLD,
) -> Mask:
    """Choose what stays: all but the lowest share, compared over all layers.

    Args:
        scores: Of heads or neurons; they have to mean the same in two layers.
        component: `heads` or `neurons`.
        sparsity: Share that goes.
        rank: As for `select`.
        seen: Texts behind the scores, as in `Seen.by(samples)`.

    Raises:
        ExciseError: A sparsity out of range.
    """
    check_sparsity(sparsity)
    keep = keep_rows(scores.view(1, -1), sparsity, rank).view_as(scores)
    return Mask(component, {component: keep}, seen)


def check_sparsity(sparsity: float) -> None:
    """Refuse a share that is out of range, or no number.

    Raises:
        ExciseError: Names it.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ExciseError(f"sparsity is {sparsity}: give a share from 0 to below 1, as in 0.3")


def check_effect(mask: Mask, sparsity: float) -> None:
    """Refuse a mask that keeps everything though something was to go.

    Raises:
        ExciseError: The share rounds to nothing everywhere.
    """
    if sparsity > 0 and all(bool(keep.all()) for keep in mask.keep.values()):
        n = sum(keep.numel() for keep in mask.keep.values())
        raise ExciseError(
            f"sparsity {sparsity:g} cuts none of {n:,} {mask.component}: ask for more, or for 0"
        )


def keep_rows(
    scores: Float[Tensor, "rows columns"], sparsity: float, rank: Rank = "abs"
) -> Bool[Tensor, "rows columns"]:
    """Keep the highest scores of each row; exactly the same number in each."""
    return keep_row(scores.abs() if rank == "abs" else scores, sparsity)
