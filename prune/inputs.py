"""What linears read, one decoder layer after another."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..core.data import Batch
from ..core.families import LayerView, ModelView
from .layers import Flow, observed
from .statistics import LinearFitter, LinearStatistics


class Inputs:
    """Hand on hidden states from layer to layer, and sum up what linears read on the way.

    For each layer in turn: `see`, `advance` before and after it is pruned.

    Args:
        view: The model; its layers are pruned meanwhile.
        batches: Calibration samples.
        sequential: Whether the next layer reads what the pruned layer gives, or what the dense
            one gave.
        gram: Whether updates need the products of all pairs of inputs.
        device: Where layers run; None: where they are.
    """

    def __init__(
        self,
        view: ModelView,
        batches: Sequence[Batch],
        *,
        sequential: bool,
        gram: bool,
        device: Any,
    ):
        self.sequential, self.gram, self.device = sequential, gram, device
        self.flow = Flow.begin(view, batches)

    def see(
        self,
        index: int,
        layer: LayerView,
        linears: Mapping[str, nn.Linear],
    ) -> dict[str, LinearStatistics]:
        """Run the layer as it is, and return what its linears read, by path.

        Args:
            index: Of the layer.
            layer: The layer, not pruned yet.
            linears: Its linears by path.
        """
        paths: dict[nn.Module, str] = {linear: path for path, linear in linears.items()}
        read: dict[str, Tensor] = {}
        leaders: dict[str, str] = {}
        fitters: dict[str, LinearFitter] = {}

        def note(linear: nn.Module, x: Tensor) -> None:
            read[paths[linear]] = x

        device = self._device(layer)
        with observed(list(linears.values()), note):
            for at, _ in enumerate(self.flow.through(index, layer, device)):
                mask = self.flow.batches[at].attention_mask.bool().to(device)
                for path, x in read.items():
                    if path not in leaders:  # q, k and v read one tensor: it is summed up once
                        same = [p for p in fitters if read[p] is x]
                        leaders[path] = same[0] if same else path
                    if leaders[path] != path:
                        continue
                    if path not in fitters:
                        fitters[path] = LinearFitter(
                            x.shape[-1], gram=self.gram, name=path, device=device
                        )
                    fitters[path].update(x.view(*mask.shape, -1), mask)
        results = {path: fitter.result() for path, fitter in fitters.items()}
        return {path: results[leader] for path, leader in leaders.items()}

    def advance(self, index: int, layer: LayerView, pruned: bool) -> None:
        """Go on behind a layer, if the next one reads what this one gives as it is now.

        Args:
            index: Of the layer.
            layer: The layer.
            pruned: Whether it is pruned by now: called once before and once after.
        """
        if pruned == self.sequential:
            self.flow.advance(index, layer, self._device(layer))

    def _device(self, layer: LayerView) -> Any:
        return self.device or next(layer.module.parameters()).device
