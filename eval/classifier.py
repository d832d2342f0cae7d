"""A sequence-classification checkpoint of HuggingFace as a toxicity scorer."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..core.errors import ExciseError, first_line, unknown_name
from ..core.identity import model_hash
from ..core.loading import own_device


TOXIC_LABELS = (
    "toxic", "toxicity", "hate", "hateful", "hate_speech", "hatespeech", "offensive", "abusive",
)  # fmt: skip
"""Labels of a checkpoint that mean toxic, in this order; compared as a whole, any case."""

_NO_LIMIT = 1_000_000
"""Tokens, where neither the model nor its tokenizer says how many it takes."""

_SHORT_AND_LONG = (
    "It rains.",
    "The train to the coast leaves at nine from the platform on the left.",
)


@dataclass(frozen=True)
class Classifier:
    """A sequence classifier that reads one label; the same score alone and in any company."""

    model: Any
    tokenizer: Any
    label: int
    limit: int
    """Tokens that fit; the end of a longer text is cut off."""
    pads: bool = False
    """Whether texts of different length may share a pass."""

    def __call__(self, texts: list[str]) -> list[float]:
        """Return the probability of the label for each text."""
        parts = [texts] if self.pads else [[text] for text in texts]
        return [score for part in parts for score in self._probabilities(part)]

    def _probabilities(self, texts: list[str]) -> list[float]:
        logits = self.logits(texts)  # (B, L)
        # the choice of transformers' TextClassificationPipeline
        several = self.model.config.problem_type == "multi_label_classification"
        each = several or logits.shape[1] == 1
        return (logits.sigmoid() if each else logits.softmax(-1))[:, self.label].tolist()

    def logits(self, texts: Sequence[str]) -> Any:
        """Return float64 logits, one row for each text, all padded to the longest."""
        import torch

        encoded = self.tokenizer(
            [text if text.strip() else "." for text in texts],  # of "" no token might be left
            padding=len(texts) > 1,
            truncation=True,
            max_length=self.limit,
            return_tensors="pt",
        )
        known = inspect.signature(self.model.forward).parameters
        inputs = {k: v.to(self.model.device) for k, v in encoded.items() if k in known}
        with torch.no_grad():
            return self.model(**inputs).logits.double()

    def can_pad(self) -> bool:
        """Try whether padding leaves the logits alone; with some checkpoints it does not."""
        import torch

        pad = self.tokenizer.pad_token_id
        if pad is None or pad != self.model.config.pad_token_id:
            return False
        alone = torch.cat([self.logits([text]) for text in _SHORT_AND_LONG])
        return torch.allclose(self.logits(_SHORT_AND_LONG), alone, rtol=1e-3, atol=1e-3)


def load_classifier(source: str, label: str | None = None) -> tuple[Classifier, str]:
    """Load a classifier in float32: safetensors only, no code of the checkpoint's own.

    Args:
        source: Hub id or folder.
        label: The label to read; by default the one that obviously means toxic.

    Returns:
        The classifier, and an identity: its weights, its settings, its tokenizer, the label.

    Raises:
        ExciseError: Nothing there, damaged, no classifier, or the label is not clear; says which.
    """
    model, tokenizer = _load(source)
    config = model.config
    labels = [config.id2label[index] for index in range(config.num_labels)]
    found = choose_label(labels, label)
    limit = min(tokenizer.model_max_length, _positions(model), _NO_LIMIT)
    settings = sorted(config.to_diff_dict().items())
    # before the first text: a fast tokenizer keeps its last padding among its settings
    words = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    rest = hashlib.sha256(repr((settings, words)).encode()).hexdigest()[:16]
    identity = (
        f"model={model_hash(model)} settings={rest} label={labels[found]} tokens={limit} "
        f"transformers={version('transformers')}"
    )
    classifier = Classifier(model, tokenizer, found, limit)
    return replace(classifier, pads=classifier.can_pad()), identity


def choose_label(labels: Sequence[str], wanted: str | None = None) -> int:
    """Pick the label that means toxic.

    Args:
        labels: All labels of a checkpoint, in its order.
        wanted: The one asked for, any case; by default one of `TOXIC_LABELS`, the only one there
            is, or the second of two without a name (`LABEL_0`, `LABEL_1`).

    Returns:
        Its index.

    Raises:
        ExciseError: No such label, or none that obviously means toxic; lists all.
    """
    plain = [_plain(label) for label in labels]
    if wanted is not None:
        if _plain(wanted) not in plain:
            raise unknown_name("label", wanted, labels)
        return plain.index(_plain(wanted))
    if len(labels) == 1:
        return 0
    unnamed = ("label_1",) if plain == ["label_0", "label_1"] else ()
    for name in (*TOXIC_LABELS, *unnamed):
        if name in plain:
            return plain.index(name)
    raise ExciseError(f"which of its labels means toxic ({', '.join(labels)})? add #LABEL")


def _plain(label: str) -> str:
    return label.casefold().replace(" ", "_").replace("-", "_")


def _positions(model: Any) -> int:
    """Return how many tokens have a position."""
    tables = [part for name, part in model.named_modules() if name.endswith("position_embeddings")]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    # RoBERTa counts positions from behind its padding index, which the config's number includes
    offset = max((index + 1 for index in padding if index is not None), default=0)
    return getattr(model.config, "max_position_embeddings", _NO_LIMIT) - offset


def _load(source: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(source)
    if not folder.is_dir() and (folder.exists() or folder.is_absolute() or source.startswith(".")):
        raise ExciseError(f"no folder at {folder}: give a classifier's folder or hub id")
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ExciseError(
            f"{folder} has no *.safetensors, and a pickle can run code when loaded: convert it"
        )
    auto: Any = AutoModelForSequenceClassification
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, info = auto.from_pretrained(
            source,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model = model.eval().to(own_device())
    except Exception as error:  # config, tokenizer, weights, device: each fails in its own way
        raise ExciseError(f"cannot load {source!r}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise ExciseError(
            f"{source!r} is no classifier: its weights lack {missing[0]}, which would be random"
        )
    return model, tokenizer
