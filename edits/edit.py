"""An edit: a few components of one checkpoint, each scaled by a factor; a small folder on disk."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ..core.errors import ExciseError
from ..core.families import ModelView, plain_linear
from ..core.files.artefact import SCHEMA, read_artefact, read_config, write_artefact
from ..core.files.escape import markdown
from ..core.files.json_text import json_text
from ..core.files.schema import OBJECT, TEXT
from ..core.held import changed
from ..core.provenance import KEY, SEEN, Seen
from .changes import Change, Layout, Unit, changes
from .checkpoint import as_bytes
from .seal import KIND, README, check_files, checksum


_UNITS = ("heads", "neurons")
_WRITTEN = ("schema", "kind", "checksum", "files")
"""What a folder's config has, and an edit's has not."""

CONFIG = {
    "base": {
        **dict.fromkeys(("name", "family", "digest", "fingerprints"), TEXT),
        "dtypes": [TEXT],
        "touched": {"*": TEXT},
    },
    "created": TEXT,
    "recipe": OBJECT,
    "evidence": OBJECT,
    "files?": {"*": TEXT},
}
"""What an edit's config has to say; its tensors are checked as an edit made by hand is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """Components and their factors: 0 removes, 0.5 damps, negative ones turn the sign.

    An edit is made free, tried on a live model, and becomes an artefact when `bind` ties it to a
    checkpoint. Two edits with the same `digest` do the same to the same checkpoint.
    """

    heads: Mapping[Unit, float] = field(default_factory=dict)
    """Factor of each (layer, head)."""
    neurons: Mapping[Unit, float] = field(default_factory=dict)
    """Factor of each (layer, neuron), a neuron being a hidden unit of the MLP."""
    weights: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By the name of a weight matrix in a decoder layer: flat indices (n,) and factors (n,)."""
    biases: Mapping[str, Tensor] = field(default_factory=dict)
    """By the name of the bias of an MLP's or attention's last linear: what is added, (d_model,).
    As in the mean of what was removed. Llama has none."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Once bound: `base` (see `bind`), `recipe`, `evidence`, `created`, `versions`."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What else is in its folder and under its seal, by name: `seen.json`, the report card."""

    def __post_init__(self):
        for name in _UNITS:
            units = {
                (_index(layer, name), _index(unit, name)): _finite(factor, name)
                for (layer, unit), factor in getattr(self, name).items()
            }
            object.__setattr__(self, name, dict(sorted(units.items())))
        weights = {name: _elements(name, *pair) for name, pair in sorted(self.weights.items())}
        object.__setattr__(self, "weights", weights)
        biases = {name: _added(name, added) for name, added in sorted(self.biases.items())}
        object.__setattr__(self, "biases", biases)

    @classmethod
    def of_units(
        cls, component: Literal["heads", "neurons"], units: Mapping[Unit, float]
    ) -> "Edit":
        """Make an edit of heads or of neurons."""
        return cls(heads=units) if component == "heads" else cls(neurons=units)

    @property
    def n_components(self) -> int:
        """How many heads, neurons and weights are scaled."""
        weights = sum(indices.numel() for indices, _ in self.weights.values())
        return len(self.heads) + len(self.neurons) + weights

    @property
    def base(self) -> Mapping[str, Any]:
        """What the edit is for: `digest`, `name`, `family`, ...; see `bind`.

        Raises:
            ExciseError: It is not bound.
        """
        if "base" not in self.config:
            raise ExciseError("this edit belongs to no checkpoint yet: bind it to one first")
        return self.config["base"]

    @property
    def digest(self) -> str:
        """SHA-256 of what is done and to which checkpoint; not of recipe, evidence or dates."""
        total = hashlib.sha256(self.config.get("base", {}).get("digest", "").encode())
        for name, tensor in self._tensors().items():
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            total.update(as_bytes(tensor))
        return total.hexdigest()

    @property
    def seen(self) -> Seen:
        """Texts that found or chose it, as its `seen.json` says."""
        name = f"edit {self.digest[:12]}"
        return Seen.read(json.loads(self.files.get(SEEN, b"{}")), name)

    def with_seen(self, seen: Seen) -> "Edit":
        """Return the edit with what is known of the texts that found or chose it."""
        content = json_text({KEY: seen.to_json()}) + "\n"
        return replace(self, files={**self.files, SEEN: content.encode()})

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, name))} {name}" for name in _UNITS if getattr(self, name)]
        if self.weights:
            n = sum(indices.numel() for indices, _ in self.weights.values())
            counts.append(f"{n} weights in {len(self.weights)} matrices")
        if self.biases:
            counts.append(f"{len(self.biases)} biases")
        factors = Counter([*self.heads.values(), *self.neurons.values()])
        for _, scaled in self.weights.values():
            factors.update(scaled.tolist())
        times = ", ".join(f"{n} x {factor:g}" for factor, n in factors.most_common(4))
        times += f", and {len(factors) - 4} other factors" if len(factors) > 4 else ""
        base = self.config.get("base")
        of = f"{base['name']} ({base['digest'][:12]})" if base else "no checkpoint yet"
        return f"edit {self.digest[:12]} of {of}: {', '.join(counts) or 'nothing'}; {times}"

    def changes(self, layout: Layout) -> dict[str, Change]:
        """Return what changes in which tensor; see `changes.changes`."""
        return changes(layout, self.heads, self.neurons, self.weights, self.biases)

    def apply_(self, model: Any) -> None:
        """Scale the components in a live model's own weights, for good.

        Any model of the right shape is taken, in any dtype: trials need no checkpoint. The same
        bits as in a folder by `apply_edit` come out where the dtype is the same.

        Raises:
            ExciseError: A component that is not there, or a quantised linear; nothing is changed.
        """
        with torch.no_grad():
            for tensor, where, new in self._planned(model):
                tensor[where] = new

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """Have the model edited for the length of a `with` block; undone exactly, always.

        Raises:
            ExciseError: As `apply_`; or another thread has the model in a scope, mask or edit.
        """
        with changed(model, lambda: self._planned(model)):
            yield model

    def _planned(self, model: Any) -> list[tuple[Tensor, tuple[Tensor, ...], Tensor]]:
        """Return (tensor, where, new values) of a live model, changing nothing."""
        view = ModelView.of(model)
        planned = []
        for name, change in self.changes(Layout.of_model(view)).items():
            plain_linear(model.get_submodule(name.rpartition(".")[0]), view)
            tensor = model.get_parameter(name)
            where = torch.unravel_index(change.indices.to(tensor.device), tensor.shape)
            planned.append((tensor, where, change.apply(tensor.detach()[where])))
        return planned

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the edit to a folder with its `files`, and a checksum over every byte of it.

        The checksum finds damage and careless change; it is no signature: note the `digest` where
        others cannot write if that matters.

        Raises:
            ExciseError: The edit is not bound, or the path is taken or cannot be written.
        """
        readme = README.format(edit=markdown(self))
        head = {"schema": SCHEMA, "kind": KIND}
        files = {name: sha256(content).hexdigest() for name, content in self.files.items()}
        own = {**self.config, "base": self.base, "files": files}
        config = json.loads(json_text({**head, **own}))
        tensors = self._tensors()
        config["checksum"] = checksum(config, save(tensors), readme)
        more = {name: content.decode() for name, content in self.files.items()}
        write_artefact(path, KIND, config, tensors, readme, overwrite, more)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Edit":
        """Read an edit back.

        Raises:
            ExciseError: No edit, or one that is not as it was written.
        """
        path = Path(path)
        config = read_config(path)
        files = check_files(path, config) if config.get("kind") == KIND else {}
        config, tensors = read_artefact(path, KIND, CONFIG)
        try:
            heads, neurons = (
                dict(zip(map(tuple, tensors[name].tolist()),
                         tensors[f"{name}.factors"].tolist(), strict=True))
                for name in _UNITS
            )  # fmt: skip
            found = {name: t for name, t in tensors.items() if name.startswith("weights/")}
            weights = {
                name.removeprefix("weights/"): (indices, tensors[f"factors/{name[8:]}"])
                for name, indices in found.items()
            }
            biases = {name[7:]: t for name, t in tensors.items() if name.startswith("biases/")}
            own = {k: v for k, v in config.items() if k not in _WRITTEN}
            edit = cls(heads=heads, neurons=neurons, weights=weights, biases=biases, config=own,
                       files=files)  # fmt: skip
        except ExciseError as error:
            raise ExciseError(f"{path} is no whole edit: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ExciseError(f"{path} is no whole edit ({error!r}): get it again") from error
        if edit._tensors().keys() != tensors.keys():
            raise ExciseError(f"{path} is no whole edit: it has tensors that no edit has")
        return edit

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"biases/{name}": added for name, added in self.biases.items()}
        for name in _UNITS:
            units: Mapping[Unit, float] = getattr(self, name)
            tensors[name] = torch.tensor(list(units), dtype=torch.int32).view(-1, 2)
            tensors[f"{name}.factors"] = torch.tensor(list(units.values()), dtype=torch.float64)
        for name, (indices, factors) in self.weights.items():
            tensors[f"weights/{name}"] = indices.int()
            tensors[f"factors/{name}"] = factors
        return dict(sorted(tensors.items()))


def _index(value: Any, what: str) -> int:
    if int(value) != value or not 0 <= value < 2**31:
        raise ExciseError(f"{value} among the {what}: layers and units are numbers from 0")
    return int(value)


def _finite(value: Any, what: str) -> float:
    if not math.isfinite(value):
        raise ExciseError(f"a factor of the {what} is {value}: give a finite number")
    return float(value) + 0.0  # -0 is 0


def _elements(name: str, indices: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices as int64, ascending, and their factors as float32."""
    indices, order = indices.detach().cpu().flatten().long().sort()
    factors = factors.detach().cpu().flatten().float()
    if indices.numel() != factors.numel() or indices.numel() == 0:
        raise ExciseError(
            f"{indices.numel()} indices and {factors.numel()} factors of {name}: give as many "
            "factors as indices, and at least one"
        )
    if int(indices[0]) < 0 or int(indices[-1]) >= 2**31 or bool((indices.diff() == 0).any()):
        raise ExciseError(f"indices of {name} are negative, too large, or there twice")
    if not bool(factors.isfinite().all()):
        raise ExciseError(f"a factor of {name} is NaN or infinite: give finite numbers")
    return indices, factors[order] + 0.0


def _added(name: str, added: Tensor) -> Tensor:
    """Return what is added to a bias as float32, or float64 if it is a sum of several edits."""
    added = added.detach().cpu().flatten()
    added = added if added.dtype == torch.float64 else added.float()
    if not bool(added.isfinite().all()):
        raise ExciseError(f"a value for {name} is NaN or infinite: give finite numbers")
    return added
