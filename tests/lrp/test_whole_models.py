"""Whole models against a second implementation: plain functions in float64, one sample at a time.

Nothing here comes from the engine: the forward pass is written out from the architecture, and the
rules are written as detached factors instead of autograd functions.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from excise import Sample
from excise.lrp.run import score_samples
from torch import Tensor


KINDS = (
    "llama-mha",
    "llama-gqa",
    "llama-mqa",
    "llama-bias",
    "llama-untied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3",
    "opt",
    "opt-350m",
)
VARIANTS = {"lrp": False, "cp-lrp": True}


def share(x: Tensor, part: float) -> Tensor:
    """Equal `x`, pass `part` of the gradient."""
    return x * part + (x * (1 - part)).detach()


def identity(x: Tensor, y: Tensor) -> Tensor:
    """Equal `y = f(x)`, with the slope `y / x`."""
    return x * (y / x).detach()


class Slow:
    """One forward pass with rules; keeps what relevance is read from."""

    def __init__(self, model: Any, constant: bool):
        self.w = {k: v.detach().double() for k, v in model.state_dict().items()}
        self.config, self.constant = model.config, constant
        self.kept: dict[str, Tensor] = {}

    def keep(self, name: str, x: Tensor) -> Tensor:
        x.retain_grad()
        self.kept[name] = x
        return x

    def linear(self, path: str, x: Tensor) -> Tensor:
        weight = self.w[f"{path}.weight"]
        y = x @ weight.T
        return y + self.w[f"{path}.bias"] if f"{path}.bias" in self.w else y

    def rms(self, path: str, x: Tensor, offset: float = 0.0) -> Tensor:
        deviation = (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt().detach()
        return (self.w[f"{path}.weight"] + offset) * x / deviation

    def layer_norm(self, path: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt().detach()
        return centred / deviation * self.w[f"{path}.weight"] + self.w[f"{path}.bias"]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of (heads, T, dim) tensors; groups of heads share keys and values."""
        if self.constant:
            q, k = q.detach(), k.detach()
        else:
            q, k, v = share(q, 0.25), share(k, 0.25), share(v, 0.5)
        per_group = q.shape[0] // k.shape[0]
        rows = []
        for head in range(q.shape[0]):
            logits = q[head] @ k[head // per_group].T * scale
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -math.inf)
            rows.append(logits.softmax(-1) @ v[head // per_group])
        return torch.cat(rows, -1)  # (T, heads * dim)

    def heads(self, x: Tensor, n: int) -> Tensor:
        return x.unflatten(-1, (n, -1)).transpose(0, 1)

    def llama(self, ids: Tensor) -> Tensor:
        config, gemma = self.config, self.config.model_type == "gemma3_text"
        offset = 1.0 if gemma else 0.0
        x = self.w["model.embed_tokens.weight"][ids].requires_grad_()
        if gemma:
            x = (x.detach() * math.sqrt(config.hidden_size)).requires_grad_()
        x = self.keep("tokens", x)
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        scale = config.query_pre_attn_scalar**-0.5 if gemma else dim**-0.5
        for i in range(config.num_hidden_layers):
            path = f"model.layers.{i}"
            h = self.rms(f"{path}.input_layernorm", x, offset)
            q, k, v = (
                self.heads(self.linear(f"{path}.self_attn.{name}_proj", h), n)
                for name, n in (
                    ("q", config.num_attention_heads),
                    ("k", config.num_key_value_heads),
                    ("v", config.num_key_value_heads),
                )
            )
            if f"{path}.self_attn.q_norm.weight" in self.w:
                q = self.rms(f"{path}.self_attn.q_norm", q, offset)
                k = self.rms(f"{path}.self_attn.k_norm", k, offset)
            theta = rope_theta(config, i)
            z = self.keep(f"heads/{i}", self.attend(rope(q, theta), rope(k, theta), v, scale))
            h = self.linear(f"{path}.self_attn.o_proj", z)
            x = x + (self.rms(f"{path}.post_attention_layernorm", h, 1.0) if gemma else h)
            norm = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
            h = self.rms(f"{path}.{norm}", x, offset)
            gate = self.linear(f"{path}.mlp.gate_proj", h)
            tanh = torch.nn.functional.gelu(gate, approximate="tanh")
            gate = identity(gate, tanh if gemma else torch.nn.functional.silu(gate))
            up = self.linear(f"{path}.mlp.up_proj", h)
            product = gate.detach() * up if self.constant else share(gate * up, 0.5)
            h = self.linear(f"{path}.mlp.down_proj", self.keep(f"neurons/{i}", product))
            x = x + (self.rms(f"{path}.post_feedforward_layernorm", h, 1.0) if gemma else h)
        return self.linear("lm_head", self.rms("model.norm", x, offset))

    def opt(self, ids: Tensor) -> Tensor:
        config, body = self.config, "model.decoder"
        x = self.keep("tokens", self.w[f"{body}.embed_tokens.weight"][ids].requires_grad_())
        if f"{body}.project_in.weight" in self.w:
            x = self.linear(f"{body}.project_in", x)
        where = self.w[f"{body}.embed_positions.weight"][2 : 2 + len(ids)].requires_grad_()
        x = x + self.keep("positions", where)
        n, before = config.num_attention_heads, config.do_layer_norm_before
        for i in range(config.num_hidden_layers):
            path = f"{body}.layers.{i}"
            h = self.layer_norm(f"{path}.self_attn_layer_norm", x) if before else x
            q, k, v = (
                self.heads(self.linear(f"{path}.self_attn.{name}_proj", h), n) for name in "qkv"
            )
            z = self.attend(q, k, v, (config.hidden_size // n) ** -0.5)
            x = x + self.linear(f"{path}.self_attn.out_proj", self.keep(f"heads/{i}", z))
            if not before:
                x = self.layer_norm(f"{path}.self_attn_layer_norm", x)
            h = self.layer_norm(f"{path}.final_layer_norm", x) if before else x
            h = self.keep(f"neurons/{i}", torch.relu(self.linear(f"{path}.fc1", h)))
            x = x + self.linear(f"{path}.fc2", h)
            if not before:
                x = self.layer_norm(f"{path}.final_layer_norm", x)
        if f"{body}.final_layer_norm.weight" in self.w:
            x = self.layer_norm(f"{body}.final_layer_norm", x)
        if f"{body}.project_out.weight" in self.w:
            x = self.linear(f"{body}.project_out", x)
        return self.linear("lm_head", x)

    def explain(self, ids: Tensor, answer: int) -> dict[str, Tensor]:
        """Return relevance of tokens (T,), heads (L, H), neurons (L, F) and all weights."""
        linears = [k for k in self.w if ".layers." in k and self.w[k].ndim == 2]
        for name in linears:
            self.w[name].requires_grad_()
        logits = self.opt(ids) if self.config.model_type == "opt" else self.llama(ids)
        # `share` on the product halves below the neurons, so their own gradient arrives whole
        logits[-1, answer].backward()
        found = {name: x.detach() * x.grad for name, x in self.kept.items() if x.grad is not None}
        layers = range(self.config.num_hidden_layers)
        n = self.config.num_attention_heads
        result = {
            "value": logits[-1, answer].detach(),
            "tokens": found["tokens"].sum(-1),
            "heads": torch.stack(
                [found[f"heads/{i}"].unflatten(-1, (n, -1)).sum((0, 2)) for i in layers]
            ),
            "neurons": torch.stack([found[f"neurons/{i}"].sum(0) for i in layers]),
        }
        for name in linears:
            grad = self.w[name].grad
            result[f"weights/{name}"] = self.w[name].detach() * (0.0 if grad is None else grad)
        return result


def rope_theta(config: Any, layer: int) -> float:
    parameters = getattr(config, "rope_parameters", None)  # transformers 5
    if config.model_type == "gemma3_text":
        kind = config.layer_types[layer]
        if parameters:
            return parameters[kind]["rope_theta"]
        return config.rope_local_base_freq if "sliding" in kind else config.rope_theta
    return parameters["rope_theta"] if parameters else config.rope_theta


def rope(x: Tensor, theta: float) -> Tensor:
    """Rotate pairs (i, i + dim/2) of (heads, T, dim) by position * theta^(-2i/dim)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def in_double(model: Any) -> Any:
    """Compute RMSNorms in float64, where transformers computes in float32 whatever the weights."""

    def forward(norm: Any, offset: float, eps: float, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * (norm.weight + offset)

    for norm in model.double().modules():
        if type(norm).__name__.endswith("RMSNorm"):
            gemma = type(norm).__name__ == "Gemma3RMSNorm"
            eps = norm.eps if gemma else norm.variance_epsilon
            norm.forward = partial(forward, norm, float(gemma), eps)
    return model


def close(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    largest = expected.abs().max().item()
    return (found.double() - expected).abs().max().item() / (largest or 1.0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_slow_implementation(kind: str, variant: str, tiny: Callable[[str], Any]):
    model = in_double(tiny(kind))
    ids = torch.tensor([5, 17, 3, 29, 11, 8, 17])
    slow = Slow(model, VARIANTS[variant]).explain(ids, answer=7)
    relevance = score_samples(
        model, [Sample(tuple(ids.tolist()), answer=7)], "logit", variant, weights=["*"]
    )
    assert relevance.config["mean_value"] == pytest.approx(slow["value"].item(), rel=1e-5)
    assert relevance.tokens is not None
    assert close(relevance.tokens[0], slow["tokens"]) < 1e-6
    for name in ("heads", "neurons"):
        assert close(relevance.get(name), slow[name]) < 1e-6, name
    for name, weights in relevance.weights.items():
        assert close(weights, slow[f"weights/{name}"]) < 1e-6, name


def test_the_slow_implementation_can_disagree(tiny: Callable[[str], Any]):
    """With another variant's rules the comparison fails by orders of magnitude."""
    model = tiny("llama-gqa").double()
    ids = torch.tensor([5, 17, 3, 29, 11])
    slow = Slow(model, constant=True).explain(ids, answer=7)
    relevance = score_samples(model, [Sample(tuple(ids.tolist()), answer=7)], "logit", "lrp")
    assert close(relevance.get("neurons"), slow["neurons"]) > 1e-2
