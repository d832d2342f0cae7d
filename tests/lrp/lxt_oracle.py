"""Relevances of a tiny Llama according to LXT, as the oracle of a parity test.

LXT replaces methods of classes for the whole process and has no way back, so this file is a
program of its own, run as

    python lxt_oracle.py MODEL_FOLDER INPUT.safetensors OUTPUT.safetensors --variant attnlrp|cp-lrp

It needs torch, transformers, safetensors and lxt 2.1 (``pip install --no-deps lxt``), and nothing
of excise. INPUT holds ``input_ids`` (B, T) without padding and ``target_ids`` (B,). The value
explained is the logit of ``target_ids`` at the last position, summed over the batch. OUTPUT holds

    ``value``           (B,)                  the explained logits
    ``embedding``       (B, T, hidden)        the embedding's output times its gradient
    ``heads/<layer>``   (B, T, heads * dim)   the input of o_proj times its gradient
    ``mlp/<layer>``     (B, T, intermediate)  the input of down_proj times its gradient
    ``weights/<name>``  as the parameter      weight times its gradient, linears of the layers

The gradients at o_proj and down_proj are those that arrive from above, through that one linear.
The halvings of AttnLRP (of the gate product, and of attention weights times values) act further
down and are not in them. A weight no gradient reaches gets zeros: in cp-lrp those of q_proj,
k_proj and gate_proj.
"""

import argparse
import sys
import types
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama import modeling_llama


# LXT's import reads these modules for its table of models, but Llama needs none of them. Its BERT
# asks for functions that transformers 5 no longer has, its ViT for torchvision.
STUBS = {"bert": ("modeling_bert", "attnLRP"), "vit_torch": ("vision_transformer", "cp_LRP")}
VARIANTS = ("attnlrp", "cp-lrp")


def patch_llama(variant: str) -> None:
    """Put LXT's rules into the Llama classes of this process, for good.

    LXT's own attention patch would replace the registry of attention functions by a plain dict,
    which transformers 5 cannot use, so only the eager attention is wrapped, with LXT's wrapper.

    Args:
        variant: One of ``VARIANTS``.
    """
    for name, attributes in STUBS.items():
        stub = types.ModuleType(f"lxt.efficient.models.{name}")
        stub.__dict__.update({attribute: f"stub of {attribute}" for attribute in attributes})
        sys.modules[stub.__name__] = stub
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zennit")
        from lxt.efficient import monkey_patch, patches
        from lxt.efficient.models import llama
    if variant == "attnlrp":
        rules, wrap_attention = llama.attnLRP, patches.wrap_attention_forward
    else:
        rules, wrap_attention = llama.cp_LRP, patches.cp_wrap_attention_forward
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # LXT only warns when a patch does not take
        rules = {target: rule for target, rule in rules.items() if target is not modeling_llama}
        monkey_patch(modeling_llama, rules)
    modeling_llama.eager_attention_forward = wrap_attention(modeling_llama.eager_attention_forward)


def explain(
    model: transformers.LlamaForCausalLM, input_ids: torch.Tensor, target_ids: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Run forward and backward once; multiply activations and weights by their gradients.

    Args:
        model: A Llama with eager attention, its classes patched.
        input_ids: Token numbers (B, T), no padding.
        target_ids: The token of each sequence whose logit at the last position is explained (B,).

    Returns:
        The tensors listed at the top of this file.
    """
    points: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        tensor.retain_grad()
        points[name] = tensor

    def keep_input(name: str, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        keep(name, inputs[0])

    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: keep("embedding", output)
    )
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.o_proj.register_forward_pre_hook(partial(keep_input, f"heads/{index}"))
        layer.mlp.down_proj.register_forward_pre_hook(partial(keep_input, f"mlp/{index}"))
    logits = model(input_ids=input_ids, use_cache=False).logits[:, -1]
    value = logits.gather(1, target_ids[:, None])[:, 0]
    value.sum().backward()

    result = {"value": value.detach()}
    result |= {name: (point * point.grad).detach() for name, point in points.items()}
    for name, module in model.model.layers.named_modules(prefix="model.layers"):
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            grad = module.weight.grad
            relevance = torch.zeros_like(weight) if grad is None else weight * grad
            result[f"weights/{name}.weight"] = relevance
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Read the arguments, explain, write the result.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    parser = argparse.ArgumentParser(description="Relevances of a tiny Llama according to LXT.")
    parser.add_argument("model", type=Path, help="folder of a Llama, as save_pretrained writes it")
    parser.add_argument("input", type=Path, help="safetensors file with input_ids and target_ids")
    parser.add_argument("output", type=Path, help="safetensors file to write")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    args = parser.parse_args(argv)

    patch_llama(args.variant)
    model = transformers.LlamaForCausalLM.from_pretrained(
        args.model,
        attn_implementation="eager",
        dtype=getattr(torch, args.dtype),
        local_files_only=True,
    ).eval()
    data = load_file(args.input)
    result = explain(model, data["input_ids"], data["target_ids"])
    save_file({name: tensor.contiguous() for name, tensor in result.items()}, args.output)


if __name__ == "__main__":
    main()
