"""Take whole components out of a model: what is left is dense, smaller, and of the same type.

Neurons, heads and layers go with every row and column that belongs to them, and the config says so:
stock transformers loads the result, with no code of ours. One config serves all layers, so each
loses the same number. Query heads that share keys and values go together: a KV group is the unit
(groups of coupled structures: Ma et al. 2023, LLM-Pruner, arXiv 2305.11627).

What went can leave its mean behind, in a bias: see `compensation`.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...core.errors import ExciseError, unknown_name
from ...core.families import LayerView, ModelView, plain_linear
from ...core.provenance import Seen
from ..mask import UNTOLD, Mask, check_sparsity, keep_rows
from .compensation import bias_key, compensated_biases, outputs


StructuredComponent = Literal["neurons", "heads", "layers"]
STRUCTURED: tuple[StructuredComponent, ...] = ("neurons", "heads", "layers")


def select_uniform(
    scores: Float[Tensor, "*layers_units"],
    component: StructuredComponent,
    sparsity: float,
    view: ModelView,
    multiple_of: int = 1,
    seen: Seen = UNTOLD,
) -> Mask:
    """Choose what stays: the highest scores, as they are, the same number in each layer.

    Exactly `round(sparsity * units)` go: of the neurons of a layer, of the KV groups of a layer (a
    group's score is the sum over its heads), or of the layers. Of equal scores the first goes.

    Args:
        scores: (layers, d_mlp), (layers, n_heads) or (layers,); of any sign, high is important.
        component: `neurons`, `heads` or `layers`.
        sparsity: Share that goes, from 0 to below 1.
        view: The model the scores belong to.
        multiple_of: For neurons: the number that stays is rounded up to a multiple, at most to
            what the model has. Hardware likes multiples of 64.
        seen: Texts behind the scores, as in `Seen.by(samples)`.

    Raises:
        ExciseError: An unknown component, scores of another shape or NaN, a sparsity out of range
            or one that leaves nothing, or a multiple that does not fit.
    """
    units, together, shape = _units(view, component)
    if tuple(scores.shape) != shape:
        raise ExciseError(
            f"scores of {component} are {tuple(scores.shape)}, and this model has {shape}"
        )
    summed = scores.detach().double().cpu().reshape(-1, units, together).sum(2)
    if bool(summed.isnan().any()):
        raise ExciseError(
            f"scores of {component} are NaN in places: score again in a finer --dtype"
        )
    check_sparsity(sparsity)
    if multiple_of < 1 or (multiple_of > 1 and component != "neurons"):
        raise ExciseError(f"multiple_of is {multiple_of}: 1 or more, and above 1 for neurons only")
    stays = units - round(sparsity * units)
    if stays == 0:
        raise ExciseError(
            f"sparsity {sparsity} leaves none of {units} {_UNITS[component]}: "
            f"ask for {(units - 1) / units:.4g} or less"
        )
    gone = max(units - -(-stays // multiple_of) * multiple_of, 0)
    keep = keep_rows(summed, gone / units, "signed").repeat_interleave(together, 1)
    return Mask(component, {component: keep.view(shape)}, seen)


def shrink(model: Any, mask: Mask, mean_inputs: Mapping[int, Tensor] | None = None) -> None:
    """Take components out of a model for good: weights, biases and config, in place.

    The result computes what the model with these components at zero does. Everything is checked
    first: on an error the model is as it was. Parameters that lose rows or columns are new ones, of
    the same dtype, device and `requires_grad`; an optimizer made before does not know them.

    Args:
        model: A causal language model, not quantised.
        mask: Neurons, heads or layers that stay: as many in each layer, heads as whole KV groups.
        mean_inputs: Mean of what the output linear reads, by layer index: (d_mlp,) for neurons,
            (n_heads * head_dim,) for heads, as `mean_inputs_of` gives. What went then leaves its
            mean in the bias. Where there is none yet, and the config has a switch for it, biases
            are made (zeros in the other linears under that switch).

    Raises:
        ExciseError: A mask of another model, or one that no plain config can express; means that
            do not fit; a bias that the config has no place for; a quantised model.
    """
    view = ModelView.of(model)
    keep = check_shrink(view, mask)
    biases: list[Tensor] = []
    if mean_inputs is not None:
        biases = compensated_biases(view, mask.component, keep, mean_inputs)
    with torch.no_grad():
        if mask.component == "layers":
            _drop_layers(view, keep)
        elif mask.component == "neurons":
            _cut_neurons(view, keep)
        else:
            _cut_heads(view, keep)
        if biases:
            _set_biases(view, mask.component, biases)


_UNITS = {"neurons": "neurons of a layer", "heads": "KV groups of a layer", "layers": "layers"}


def _units(view: ModelView, component: str) -> tuple[int, int, tuple[int, ...]]:
    """Return what is counted, how many scores go together in one, and the shape of scores."""
    layers, groups = len(view.layers), view.n_kv_heads
    if component == "neurons":
        return view.d_mlp, 1, (layers, view.d_mlp)
    if component == "heads":
        return groups, view.n_heads // groups, (layers, view.n_heads)
    if component == "layers":
        return layers, 1, (layers,)
    raise unknown_name("component", component, STRUCTURED)


def check_shrink(view: ModelView, mask: Mask) -> Tensor:
    """Return what stays as a bool tensor on the CPU, if a plain config can say it.

    Raises:
        ExciseError: It cannot; as `shrink`, which changes nothing before this.
    """
    component = mask.component
    if component == "weights":
        raise ExciseError("single weights cannot be taken out: set them to zero with mask.apply_")
    _, together, _ = _units(view, component)
    mask.check(view)
    for linear in view.layer_linears().values():
        plain_linear(linear, view)
    sizes = {(layer.mlp_out.in_features, layer.attention_out.in_features) for layer in view.layers}
    if sizes != {(view.d_mlp, view.n_heads * view.head_dim)}:
        raise ExciseError(
            "layers of this model differ in size, as no plain config says: use --zero"
        )
    keep = mask.keep[component].detach().cpu().bool()
    counts = keep.view(-1, keep.shape[-1]).sum(1).tolist()
    if 0 in counts:
        where = "" if component == "layers" else f" in layer {counts.index(0)}"
        raise ExciseError(f"the mask keeps no {component}{where}: at least one has to stay")
    if len(set(counts)) > 1:
        odd = next(index for index, count in enumerate(counts) if count != counts[0])
        raise ExciseError(
            f"the mask keeps {counts[0]} {component} in layer 0 and {counts[odd]} in layer {odd}, "
            "and a plain config has one number for all layers: choose with select_uniform"
        )
    if component == "heads":
        _check_heads(view, keep.view(len(keep), -1, together), counts[0])
    return keep


def _check_heads(view: ModelView, grouped: Tensor, stays: int) -> None:
    """Refuse parts of KV groups, and numbers of heads that the family's config cannot have.

    Args:
        view: The model.
        grouped: (layers, n_kv_heads, heads of a group), true where a head stays.
        stays: Heads that stay in each layer.
    """
    name, width, together = view.family.name, view.d_model, grouped.shape[2]
    if view.family.head_counts == "fixed":
        raise ExciseError(
            f"heads cannot be taken out of a model of type {name}, whose config fixes heads x head "
            "size to the hidden size: cut neurons or layers, or set heads to zero (--zero)"
        )
    torn = (grouped.any(2) != grouped.all(2)).nonzero().tolist()
    if torn:
        layer, group = torn[0]
        raise ExciseError(
            f"the mask keeps a part of heads {group * together} to {(group + 1) * together - 1} in "
            f"layer {layer}, which share keys and values: choose whole groups with select_uniform"
        )
    if view.family.head_counts == "divisors" and width % stays:
        fitting = [g for g in range(1, view.n_kv_heads + 1) if width % (g * together) == 0]
        raise ExciseError(
            f"{stays} heads do not divide the hidden size {width}, and transformers 5 loads no "
            f"{name} config where they do not: of {view.n_kv_heads} KV groups keep "
            f"{' or '.join(map(str, fitting)) or 'all'} (or set heads to zero: --zero)"
        )


def writers(layer: LayerView, component: str) -> tuple[nn.Linear, ...]:
    """Return the linears whose rows go with neurons, or with heads: queries, keys, values."""
    if component == "neurons":
        return layer.mlp_in
    query, key = (cast(nn.Linear, module) for module in layer.query_key[:2])
    return query, key, layer.value


def under_switch(view: ModelView, layer: LayerView, key: str) -> tuple[nn.Linear, ...]:
    """Return the linears of a layer that one config key gives a bias."""
    family = view.family
    mlp = (*layer.mlp_in, layer.mlp_out) if family.mlp_bias == key else ()
    heads = (*writers(layer, "heads"), layer.attention_out) if family.attention_bias == key else ()
    return (*mlp, *heads)


def _set_biases(view: ModelView, component: str, biases: list[Tensor]) -> None:
    """Give the output linears their biases; where there are none, switch them on in the config."""
    key = bias_key(view, component)
    for layer, linear, bias in zip(view.layers, outputs(view, component), biases, strict=True):
        if linear.bias is None and key is not None:
            setattr(view.model.config, key, True)
            for other in under_switch(view, layer, key):
                if other.bias is None:
                    zeros = other.weight.new_zeros(other.out_features)
                    other.bias = nn.Parameter(zeros, other.weight.requires_grad)
        linear.bias.copy_(bias)


def _cut_neurons(view: ModelView, keep: Tensor) -> None:
    key = view.family.mlp_width
    for layer, stays in zip(view.layers, keep, strict=True):
        for linear in writers(layer, "neurons"):
            _cut(linear, 0, stays)
        _cut(layer.mlp_out, 1, stays)
        _tell(layer.module, key, layer.mlp_out.in_features)
    setattr(view.model.config, key, view.layers[0].mlp_out.in_features)


def _cut_heads(view: ModelView, keep: Tensor) -> None:
    groups = keep[:, :: view.n_heads // view.n_kv_heads]
    for layer, heads, kept in zip(view.layers, keep, groups, strict=True):
        for linear, stays in zip(writers(layer, "heads"), (heads, kept, kept), strict=True):
            _cut(linear, 0, stays.repeat_interleave(view.head_dim))
        _cut(layer.attention_out, 1, heads.repeat_interleave(view.head_dim))
    config = view.model.config
    config.head_dim = view.head_dim
    config.num_attention_heads = int(keep[0].sum())
    config.num_key_value_heads = int(groups[0].sum())


def _drop_layers(view: ModelView, keep: Tensor) -> None:
    """Take layers out; the others get the index, and the config the lists, of a shorter stack."""
    config, stays = view.model.config, keep.tolist()
    layers = view.model.get_submodule(f"{view.family.body}.layers")
    for index in reversed(range(len(stays))):
        if not stays[index]:
            del layers[index]
    for index, layer in enumerate(layers):
        _tell(layer, "layer_idx", index)
    config.num_hidden_layers = len(layers)
    if types := getattr(config, "layer_types", None):
        config.layer_types = [kind for kind, stay in zip(types, stays, strict=True) if stay]
        body = view.model.get_submodule(view.family.body)
        _tell(body, "has_sliding_layers", "sliding_attention" in config.layer_types)
    if window := getattr(config, "max_window_layers", None):  # how many layers see everything
        config.max_window_layers = sum(stays[:window])


def _tell(root: nn.Module, name: str, value: int) -> None:
    """Change an attribute in those modules at or below one that have it."""
    for module in root.modules():
        if name in vars(module):
            setattr(module, name, value)


def _cut(linear: nn.Linear, dim: int, stays: Tensor) -> None:
    """Keep some rows (dim 0, with their biases) or columns (dim 1) of a linear."""
    index = stays.nonzero().flatten().to(linear.weight.device)
    parts = ("weight",) if dim or linear.bias is None else ("weight", "bias")
    for name in parts:
        old = linear.get_parameter(name)
        new = old.detach().index_select(dim, index)
        setattr(linear, name, nn.Parameter(new, old.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape
