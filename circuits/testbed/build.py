"""Builds the models of the test bed: a stock class, every weight written by hand."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core.families import ModelView
from .attention import AttentionWriter
from .mlp import N_DECOYS, MlpWriter
from .plan import D_MLP, N_HEADS, N_KV_HEADS, N_LAYERS, Plan
from .space import D_MODEL, Reader, Space, draw_space
from .task import ANSWERS, BOS, LENGTH, VOCABULARY, Tables
from .wiring import decoys, wirings


LOGIT = 6.0
"""About the logit difference of a right answer."""
LOGIT_LEAK = 0.05
"""How much of the junk each logit reads, relative to an answer."""


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=N_KV_HEADS,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def _opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        max_position_embeddings=LENGTH,
        dropout=0.0,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
    )
    return OPTForCausalLM(config)


BLANKS = {"llama": _llama, "opt": _opt}
"""Families of the test bed."""

FINAL_NORMS = {"llama": "norm", "opt": "final_layer_norm"}
"""Path of the norm before the logits, in the body."""


@torch.no_grad()
def build(
    family: str, plan: Plan, tables: Tables, ids: Int[Tensor, "batch seq"], draw: torch.Generator
) -> Any:
    """Build a model in which a plan is carried out.

    Args:
        family: A key of `BLANKS`.
        plan: Where the circuit is.
        tables: What it looks up.
        ids: Prompts, on which the sizes of everything random are measured, layer by layer.
        draw: Source of all other randomness; torch's own is left as it is.

    Returns:
        The model, float32, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        model = BLANKS[family]().float().eval()
    view = ModelView.of(model)
    space = draw_space(draw)
    positions: Any = view.positions
    learned = positions is not None
    embedding: Any = view.embedding.weight
    embedding.copy_(space.embedding())
    if learned:
        positions.weight[2:] = space.positions()  # the first two rows are for no position

    wired = wirings(plan, space, learned)
    copied = decoys(plan, wired, N_HEADS // view.n_kv_heads, draw)
    for index, layer in enumerate(view.layers):
        attention = AttentionWriter(layer, space, view.n_kv_heads, learned, draw)
        stream = _input_of(layer.attention_norm, model, ids)
        outputs = attention.write_inputs(
            {head: wiring for (at, head), wiring in wired.items() if at == index},
            {head: wiring for (at, head), wiring in copied.items() if at == index},
            _fit_norm(layer.attention_norm, stream, space, draw),
            stream,
        )
        attention.write_output(outputs, _input_of(layer.attention_out, model, ids))

        units, letters = plan.lookup_of(index)
        mlp = MlpWriter(layer, space, tables, draw)
        stream = _input_of(layer.mlp_norm, model, ids)
        reader = _fit_norm(layer.mlp_norm, stream, space, draw)
        n_decoys = N_DECOYS if index >= plan.lookup[0] else 0  # there is nothing to test before
        mlp.write_inputs(units, letters, reader, stream, n_decoys)
        mlp.write_output(units, letters, _input_of(layer.mlp_out, model, ids))

    norm = model.get_submodule(f"{view.family.body}.{FINAL_NORMS[family]}")
    reader = _fit_norm(norm, _input_of(norm, model, ids)[:, -1:], space, draw, shifted=False)
    rows = LOGIT_LEAK * space.junk(VOCABULARY, draw)
    rows[list(ANSWERS)] += space["answer"]
    reader.write(model.lm_head, slice(0, VOCABULARY), LOGIT * rows)
    return model


def _input_of(module: Any, model: Any, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "b s d"]:
    """Run the model as far as it is written, and return what comes into a module."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    try:
        model(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    return found[0].view(*ids.shape, -1)  # OPT's MLP knows no batch


def _fit_norm(
    norm: Any,
    stream: Float[Tensor, "batch seq d_model"],
    space: Space,
    draw: torch.Generator,
    shifted: bool = True,
) -> Reader:
    """Draw a norm's parameters, and return what reads through it.

    Args:
        norm: RMSNorm or LayerNorm.
        stream: What comes into it.
        space: Of the model.
        draw: Source of randomness.
        shifted: Whether a LayerNorm adds something.
    """
    gain = 0.7 + 0.6 * torch.rand(D_MODEL, generator=draw)
    norm.weight.copy_(gain)
    shift = torch.zeros(D_MODEL)
    if isinstance(norm, torch.nn.LayerNorm):
        shift += 0.1 * shifted * torch.randn(D_MODEL, generator=draw)
        norm.bias.copy_(shift)
    return Reader(gain, shift, float(stream.std(-1, correction=0).mean()), space.unit)
