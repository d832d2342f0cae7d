"""Where the heads of a circuit look, on a few prompts: for people to see."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.data import collate
from ..core.families import ModelView
from ..core.frozen import frozen
from .graph import Writer, name
from .pairs import Pairs


def attention_examples(
    model: Any, tokenizer: Any, pairs: Pairs, nodes: Sequence[Writer], most: int = 3
) -> list[dict[str, Any]]:
    """Return prompts as tokens with the attention patterns of heads, as JSON values.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        pairs: Prompts.
        nodes: Those whose heads are looked at.
        most: How many prompts.

    Returns:
        For each prompt `tokens`, `answer`, and `attention`: by head name rows of (query, key)
        weights, lower triangular, rounded to three decimals.
    """
    view = ModelView.of(model)
    heads = [node for node in nodes if node[0] == "head"]
    examples = []
    for sample in pairs.clean[:most]:
        batch = collate([sample]).to(view.embedding.weight.device)
        with torch.no_grad(), frozen(view), _eager(model):
            inputs = batch.model_inputs(view.family.passes_position_ids)
            patterns = model(**inputs, output_attentions=True).attentions
        examples.append({
            "tokens": [tokenizer.decode([i]) for i in sample.input_ids],
            "answer": tokenizer.decode([sample.answer]),
            "attention": {
                name(head): [
                    [round(x, 3) for x in row[: query + 1]]
                    for query, row in enumerate(patterns[head[1]][0, head[2]].float().tolist())
                ]
                for head in heads
            },
        })  # fmt: skip
    return examples


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Have the attention that returns its patterns, for a while."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
