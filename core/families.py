"""How each supported model type is built, as data.

A `Family` is one row of paths; a `ModelView` is a live model seen through its row. Nothing here
copies a modelling file: adding a family means adding a row here and one of its classes in
`classes.OWN`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .classes import compiled_module, kind_of, unknown_modules
from .errors import ExciseError, UnsupportedModelError


if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """Where the parts of a model type are, relative to the model or to one decoder layer."""

    name: str
    """`config.model_type` of the checkpoints this row describes."""
    body: str
    """Path from the causal model to the stack that holds embeddings, layers and final norm."""
    attention: str
    """The attention module of a layer; it calls transformers' attention interface."""
    attention_out: str
    """The linear that mixes the heads back into the residual stream."""
    mlp_in: tuple[str, ...]
    """Linears that write the MLP's hidden units: gate first where there is one."""
    activation: str
    mlp_out: str
    """The linear that reads the MLP's hidden units."""
    query_key: tuple[str, ...]
    """Modules that act on queries and keys alone, which CP-LRP holds constant."""
    attention_norm: str
    """The norm of the attention branch, relative to a layer like all paths here."""
    mlp_norm: str
    """The norm of the MLP branch."""
    attention_out_norm: str | None = None
    """A second norm, between the attention and the residual addition, if there is one."""
    mlp_out_norm: str | None = None
    """The same of the MLP."""
    norm_first: str | None = None
    """Config key that says whether the branches' norms come before them, or behind the residual
    addition; None if they always come before."""
    value: str = "self_attn.v_proj"
    """The linear that makes the values."""
    positions: str | None = None
    """Learned position embedding, relative to the body."""
    dropouts: tuple[str, ...] = ()
    """Attributes of a layer that hold a dropout probability of its own forward pass."""
    passes_position_ids: bool = True
    """Whether padded batches need explicit position ids (else the model derives them)."""
    mlp_width: str = "intermediate_size"
    """Config key of the number of hidden units."""
    mlp_bias: str | None = None
    """Config key that gives all linears of the MLP a bias, if there is one."""
    attention_bias: str | None = None
    """Config key that gives all linears of the attention a bias, if there is one."""
    soft_caps: tuple[str, ...] = ()
    """Config keys of soft caps, a tanh over logits: no rule is known for them."""
    head_counts: Literal["any", "divisors", "fixed"] = "any"
    """How many heads a config may ask for: any number, a divisor of the model's width (transformers
    5 checks it, whatever `head_dim` says), or no number but width by head size."""
    example: str = ""
    """A checkpoint of this kind, for the documentation."""

    @property
    def gated(self) -> bool:
        """Whether the MLP multiplies an activated gate with a second linear."""
        return len(self.mlp_in) == 2


_LLAMA: dict[str, Any] = {
    "body": "model",
    "attention": "self_attn",
    "attention_out": "self_attn.o_proj",
    "mlp_in": ("mlp.gate_proj", "mlp.up_proj"),
    "activation": "mlp.act_fn",
    "mlp_out": "mlp.down_proj",
    "query_key": ("self_attn.q_proj", "self_attn.k_proj"),
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_NORMED: dict[str, Any] = {
    **_LLAMA,
    "query_key": (*_LLAMA["query_key"], "self_attn.q_norm", "self_attn.k_norm"),
    "attention_bias": "attention_bias",
}

FAMILIES: dict[str, Family] = {
    row.name: row
    for row in (
        Family(
            "llama",
            **_LLAMA,
            mlp_bias="mlp_bias",
            attention_bias="attention_bias",
            head_counts="divisors",
            example="meta-llama/Llama-3.2-1B",
        ),
        Family("mistral", **_LLAMA, example="mistralai/Mistral-7B-v0.3"),
        Family("qwen2", **_LLAMA, example="Qwen/Qwen2.5-0.5B"),
        Family("qwen3", **_NORMED, example="Qwen/Qwen3-0.6B"),
        Family(
            "gemma3_text",
            **{**_NORMED, "mlp_norm": "pre_feedforward_layernorm"},
            attention_out_norm="post_attention_layernorm",
            mlp_out_norm="post_feedforward_layernorm",
            soft_caps=("final_logit_softcapping", "attn_logit_softcapping"),
            head_counts="divisors",
            example="google/gemma-3-270m",
        ),
        Family(
            "opt",
            body="model.decoder",
            attention="self_attn",
            attention_out="self_attn.out_proj",
            mlp_in=("fc1",),
            activation="activation_fn",
            mlp_out="fc2",
            query_key=_LLAMA["query_key"],
            attention_norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
            norm_first="do_layer_norm_before",
            positions="embed_positions",
            dropouts=("dropout",),
            passes_position_ids=False,
            mlp_width="ffn_dim",
            mlp_bias="enable_bias",
            attention_bias="enable_bias",
            head_counts="fixed",
            example="facebook/opt-125m",
        ),
    )
}
"""Every supported family by `config.model_type`."""


@dataclass(frozen=True)
class LayerView:
    """One decoder layer, its parts by role."""

    path: str
    module: "nn.Module"
    attention: "nn.Module"
    attention_out: "nn.Linear"
    mlp_in: tuple["nn.Linear", ...]
    activation: "nn.Module"
    mlp_out: "nn.Linear"
    query_key: tuple["nn.Module", ...]
    value: "nn.Linear"
    attention_norm: "nn.Module"
    mlp_norm: "nn.Module"
    attention_out_norm: "nn.Module | None"
    mlp_out_norm: "nn.Module | None"


@dataclass(frozen=True)
class ModelView:
    """A live causal language model seen through its family's row.

    Build it with `ModelView.of(model)`. Holds references only: no copy, no change.
    """

    model: Any
    family: Family
    layers: tuple[LayerView, ...]
    embedding: "nn.Embedding"
    positions: "nn.Module | None"
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_first: bool
    """Whether norms come before attention and MLP, or behind the residual additions."""
    paths: dict[int, str] = field(repr=False)
    """Path of each module, by `id(module)`."""

    @classmethod
    def of(cls, model: Any) -> "ModelView":
        """Look at a causal language model.

        Args:
            model: A transformers model with a language-model head.

        Raises:
            UnsupportedModelError: Its type has no row, one of its modules or a soft cap has no
                rule, it is compiled, or it is wrapped or rearranged so that a path of the row leads
                nowhere.
        """
        family = family_of(model)
        _check_classes(model, family)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UnsupportedModelError(
                "part of the model's weights are not in memory (offloaded, or on the device meta), "
                "where neither relevance nor a cut reaches them: load all of it on the CPU, or "
                "over GPUs that hold it"
            )
        body = _follow(model, family.body, family)
        layers = tuple(
            LayerView(
                path=f"{family.body}.layers.{index}",
                module=layer,
                attention=_follow(layer, family.attention, family),
                attention_out=_follow(layer, family.attention_out, family),
                mlp_in=tuple(_follow(layer, path, family) for path in family.mlp_in),
                activation=_follow(layer, family.activation, family),
                mlp_out=_follow(layer, family.mlp_out, family),
                query_key=tuple(_follow(layer, path, family) for path in family.query_key),
                value=_follow(layer, family.value, family),
                attention_norm=_follow(layer, family.attention_norm, family),
                mlp_norm=_follow(layer, family.mlp_norm, family),
                attention_out_norm=_maybe(layer, family.attention_out_norm, family),
                mlp_out_norm=_maybe(layer, family.mlp_out_norm, family),
            )
            for index, layer in enumerate(_follow(body, "layers", family))
        )
        config = model.config
        n_heads = config.num_attention_heads
        return cls(
            model=model,
            family=family,
            layers=layers,
            embedding=model.get_input_embeddings(),
            positions=_maybe(body, family.positions, family),
            d_model=config.hidden_size,
            d_mlp=layers[0].mlp_in[0].out_features,
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
            norm_first=getattr(config, family.norm_first) if family.norm_first else True,
            paths={id(module): path for path, module in model.named_modules()},
        )

    def path(self, module: "nn.Module") -> str:
        """Return where a module of this model is, as in `model.layers.0.mlp.act_fn`."""
        return self.paths[id(module)]

    def modules(self, *kinds: str) -> Iterator[tuple[str, "nn.Module"]]:
        """Iterate over the (path, module) pairs of the given kinds, in model order."""
        for path, module in self.model.named_modules():
            if kind_of(module) in kinds:
                yield path, module

    def layer_linears(self) -> dict[str, "nn.Linear"]:
        """Return the linears inside the decoder layers by path (not the head, not projections)."""
        prefixes = tuple(f"{layer.path}." for layer in self.layers)
        linears: Iterator[tuple[str, Any]] = self.modules("linear")
        return {path: linear for path, linear in linears if path.startswith(prefixes)}


def plain_linear(linear: "nn.Module", view: ModelView) -> "nn.Linear":
    """Return a linear whose weights can be read and cut.

    Raises:
        ExciseError: It is quantised.
    """
    if type(linear).__name__ != "Linear":
        raise ExciseError(
            f"{view.path(linear)} is quantised ({type(linear).__name__}), and its weights are "
            "needed: load the full weights (no --load-in-4bit / --load-in-8bit)"
        )
    return linear  # type: ignore[return-value]


def family_of(model: Any) -> Family:
    """Return the row of a model.

    Raises:
        UnsupportedModelError: Names the type, the supported ones, and the modules without a rule.
    """
    model_type = model.config.model_type
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    unknown = unknown_modules(model, model_type)
    modules = f"; no rule is known for {_named(unknown)}" if unknown else ""
    raise UnsupportedModelError(
        f"model type {model_type!r} is not supported{modules}; "
        f"supported are {', '.join(sorted(FAMILIES))}"
    )


def _check_classes(model: Any, family: Family) -> None:
    """Refuse what computes something that no rule is known for, or would pass rules by."""
    if (path := compiled_module(model)) is not None:
        raise UnsupportedModelError(
            f"{path or 'the model'} is compiled, and rules, masks and probes do not reach into "
            "compiled code: give the model as it was before (model._orig_mod of torch.compile), or "
            "load it again and leave model.compile() out"
        )
    if unknown := unknown_modules(model, family.name):
        raise UnsupportedModelError(
            f"no rule is known for {_named(unknown)} in this {family.name} model: use the stock "
            "classes of transformers, with adapters merged"
        )
    for key in family.soft_caps:
        if (cap := getattr(model.config, key)) is not None:
            raise UnsupportedModelError(
                f"no rule is known for a soft cap, and the model's config has {key} = {cap}: use a "
                "checkpoint that has none"
            )


def _named(modules: dict[str, str], most: int = 4) -> str:
    shown = [f"{path or 'the model'} ({name})" for path, name in list(modules.items())[:most]]
    more = f" and {len(modules) - most} more" if len(modules) > most else ""
    return ", ".join(shown) + more


def _maybe(module: Any, path: str | None, family: Family) -> Any:
    return _follow(module, path, family) if path else None


def _follow(module: Any, path: str, family: Family) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no {path!r}, which a {family.name} model has: "
            "pass the plain causal language model (merge or unwrap adapters first)"
        ) from error
