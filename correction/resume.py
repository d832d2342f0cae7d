"""What a run that was killed had found so far, kept beside its output."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core.data import Sample
from ..core.files import progress
from ..core.files.progress import Config, Tensors
from ..edits.edit import Edit
from .data.behaviour import BehaviourSet
from .ranking.contrast import Contrast
from .ranking.weights import WeightContrast


@dataclass(frozen=True)
class Progress(progress.Progress):
    """The parts of a correction; `asked` is all that each depends on, see `digests`."""

    def behaviour(self, asked: Config, make: Callable[[], BehaviourSet]) -> BehaviourSet:
        """Return the samples of an earlier run, or make and keep them."""
        return self.part("behaviour", asked, make, _pack_behaviour, _unpack_behaviour)

    def contrast(self, asked: Config, make: Callable[[], Contrast]) -> Contrast:
        """Return the contrast of an earlier run, or make it and keep it."""
        return self.part("contrast", asked, make, _pack_contrast, _unpack_contrast)

    def weights(self, asked: Config, make: Callable[[], WeightContrast]) -> WeightContrast:
        """Return the contrast of weights of an earlier run, or make and keep it."""
        return self.part("contrast", asked, make, _pack_weights, _unpack_weights)

    def edit(self, name: str, asked: Config, make: Callable[[], Edit]) -> Edit:
        """Return an edit of heads or neurons of an earlier run, or make it and keep it."""
        return self.part(name, asked, make, _pack_edit, _unpack_edit)


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
