"""What a run that was killed had found so far, kept beside its output."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ..core.artefact import read_artefact, write_artefact
from ..core.data import Sample
from ..core.errors import ExciseError
from .behaviour import BehaviourSet
from .contrast import Contrast
from .contrast_weights import WeightContrast
from .edit import Edit


Config = Mapping[str, Any]
Tensors = Mapping[str, Tensor]
Found = TypeVar("Found")

KIND = "progress"
README = "An unfinished excise run: repeat its command with --resume, or delete this folder.\n"


@dataclass(frozen=True)
class Progress:
    """A folder with a part for each step that is done; each is written whole or not at all."""

    folder: Path | None
    """None keeps nothing."""

    def behaviour(self, asked: Config, make: Callable[[], BehaviourSet]) -> BehaviourSet:
        """Return the samples of an earlier run, or make and keep them; see `contrast`."""
        return self._part("behaviour", asked, make, _pack_behaviour, _unpack_behaviour)

    def contrast(self, asked: Config, make: Callable[[], Contrast]) -> Contrast:
        """Return the contrast of an earlier run, or make it and keep it.

        Args:
            asked: All that it depends on; JSON values.
            make: Makes it.

        Raises:
            ExciseError: The folder is of another run.
        """
        return self._part("contrast", asked, make, _pack_contrast, _unpack_contrast)

    def weights(self, asked: Config, make: Callable[[], WeightContrast]) -> WeightContrast:
        """Return the contrast of weights of an earlier run, or make and keep it; see `contrast`."""
        return self._part("contrast", asked, make, _pack_weights, _unpack_weights)

    def edit(self, name: str, asked: Config, make: Callable[[], Edit]) -> Edit:
        """Return an edit of heads or neurons of an earlier run, or make it and keep it."""
        return self._part(name, asked, make, _pack_edit, _unpack_edit)

    def forget(self) -> None:
        """Remove all of it, once its run is done.

        It is renamed first, to a name that `check_output` sweeps up after a kill: half a folder
        under its own name would stop the next run.
        """
        if self.folder is None:
            return
        gone = self.folder.with_suffix(f".{os.getpid()}.part")
        with suppress(OSError):  # the output is written, and that is what counts
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _part(
        self,
        name: str,
        asked: Config,
        make: Callable[[], Found],
        pack: Callable[[Found], tuple[Config, Tensors]],
        unpack: Callable[[Config, Tensors], Found],
    ) -> Found:
        if self.folder is None:
            return make()
        key = hashlib.sha256(json.dumps(dict(asked), sort_keys=True).encode()).hexdigest()
        if (self.folder / name).exists():
            config, tensors = read_artefact(self.folder / name, KIND)
            if config.get("key") != key:
                raise ExciseError(
                    f"{self.folder} is of a run with other options or data: delete it, or leave "
                    "out --resume"
                )
            return unpack(config, tensors)
        found = make()
        config, tensors = pack(found)
        write_artefact(self.folder / name, KIND, {"key": key, **config}, tensors, README)
        return found


def _pack_contrast(found: Contrast) -> tuple[Config, Tensors]:
    tensors = {"scores": found.scores, "low": found.low, "protected": found.protected}
    if found.factors is not None:
        tensors["factors"] = found.factors
    config = {"component": found.component, "rank_by": found.rank_by, "contrast": found.config}
    return config, tensors


def _unpack_contrast(config: Config, tensors: Tensors) -> Contrast:
    return Contrast(
        config["component"], tensors["scores"], tensors["low"], tensors["protected"],
        config["contrast"], config["rank_by"], tensors.get("factors"),
    )  # fmt: skip


def _pack_weights(found: WeightContrast) -> tuple[Config, Tensors]:
    tensors = {}
    for name, (indices, scores) in found.ranked.items():
        tensors |= {f"{name}/indices": indices, f"{name}/scores": scores}
    return {"n": found.n, "contrast": found.config, "matrices": list(found.ranked)}, tensors


def _unpack_weights(config: Config, tensors: Tensors) -> WeightContrast:
    ranked = {
        name: (tensors[f"{name}/indices"], tensors[f"{name}/scores"]) for name in config["matrices"]
    }
    return WeightContrast(ranked, config["n"], config["contrast"])


_SETS = ("undesired", "general", "kept")


def _pack_behaviour(found: BehaviourSet) -> tuple[Config, Tensors]:
    sets = {
        name: [[list(s.input_ids), s.continuation] for s in getattr(found, name)] for name in _SETS
    }
    config = {"name": found.name, "paired": found.paired, "left_out": found.left_out, **sets}
    return config, {}


def _unpack_behaviour(config: Config, _tensors: Tensors) -> BehaviourSet:
    undesired, general, kept = (
        tuple(Sample(tuple(ids), continuation=n) for ids, n in config[name]) for name in _SETS
    )
    return BehaviourSet(
        config["name"], undesired, general, config["paired"], kept, config["left_out"]
    )


def _pack_edit(edit: Edit) -> tuple[Config, Tensors]:
    sets = {"heads": edit.heads, "neurons": edit.neurons}
    return {name: [[*unit, f] for unit, f in units.items()] for name, units in sets.items()}, {}


def _unpack_edit(config: Config, _tensors: Tensors) -> Edit:
    heads, neurons = (
        {(layer, unit): factor for layer, unit, factor in config[name]}
        for name in ("heads", "neurons")
    )
    return Edit(heads=heads, neurons=neurons)
