"""What pruning is calibrated on: a text, a dataset, or what the model itself writes."""

import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from tqdm import tqdm

from ..core.data import Sample, check_length, encode_texts
from ..core.documents import BUILTIN, read_documents
from ..core.errors import ExciseError, shown
from ..core.generation import Decoding, complete
from ..core.loading import Loaded
from ..core.texts import text_hash


Texts: TypeAlias = str | os.PathLike[str] | Sequence[str]

SELF = "self"
"""Name of the calibration that the model writes."""
DOCUMENTS = 50
"""Documents of a dataset that are read for each sample: enough for most texts."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """Where calibration samples come from.

    Raises:
        ExciseError: The source is missing, empty, or no text: before a model is loaded.
    """

    source: Texts
    """A text file, a datasets id, `builtin`, `self` (what the model writes), or the texts."""
    n: int = 32
    """Samples, at most."""
    length: int = 512
    """Tokens per sample."""
    seed: int = 0

    def __post_init__(self):
        if self.n < 1 or self.length < 2:
            raise ExciseError(
                f"`samples` {self.n} `length` {self.length}: give at least 1 sample of 2 tokens"
            )
        if self.name != SELF:
            _ = self.documents

    @property
    def name(self) -> str:
        """The source, or `given` where the texts themselves were handed over."""
        return os.fspath(self.source) if isinstance(self.source, str | os.PathLike) else "given"

    @cached_property
    def documents(self) -> list[str]:
        """The texts; of `builtin` every second one, since the others are there to measure on."""
        if not isinstance(self.source, str | os.PathLike):
            texts = list(self.source)
            if not texts or not all(isinstance(text, str) and text for text in texts):
                raise ExciseError(f"`calibration` is {shown(texts)}: give texts, or where they are")
            return texts
        documents = read_documents(self.name, self.n * DOCUMENTS)
        return documents[::2] if self.name == BUILTIN else documents

    def samples(
        self, loaded: Loaded, placeholders: bool = False, progress: bool = False
    ) -> list[Sample]:
        """Return the samples, drawn by the seed.

        Args:
            loaded: Model and tokenizer.
            placeholders: Whether lengths are enough, so that nothing need be written.
            progress: Whether to draw a progress bar while the model writes.

        Raises:
            ExciseError: The text is shorter than one sample, or the model too short for it.
        """
        if self.name == SELF:
            sizes = [Sample((0,) * self.length)] * self.n
            check_length(sizes, loaded.model.config)
            return sizes if placeholders else self._written(loaded, progress)
        found = encode_texts(loaded.tokenizer, self.documents, self.n, self.length, self.seed)
        if len(found) < self.n:
            log.warning("%s gives only %d of %d samples", self.name, len(found), self.n)
        return found

    def __str__(self) -> str:
        return f"{self.name}, {self.n} samples of {self.length} tokens, seed {self.seed}"

    def _written(self, loaded: Loaded, progress: bool) -> list[Sample]:
        """Let the model write: sampled, each text on from a word drawn from its vocabulary.

        Data-free calibration as by Liu et al. (2023, LLM-QAT, arXiv 2305.17888): a first token at
        random, then the model's own distribution. A text that ends goes on with the next.
        """
        n, length, drawn = self.n, self.length, random.Random(self.seed)
        special = set(loaded.tokenizer.all_special_ids)
        words = sorted(set(loaded.tokenizer.get_vocab().values()) - special)
        ids: list[int] = []
        disable = None if progress else True
        with tqdm(total=n * length, desc="writing", unit="token", disable=disable) as bar:
            while len(ids) < n * length:
                starts = [(drawn.choice(words),) for _ in range(min(8, n))]
                decoding = Decoding(1, length - 1, top_p=1.0, seed=self.seed)
                for index, (written,) in complete(loaded.model, starts, decoding, 8):
                    ids += [*starts[index], *written]
                    bar.update(1 + len(written))
        parts = [tuple(ids[i * length : (i + 1) * length]) for i in range(n)]
        decode = loaded.tokenizer.decode
        return [Sample(part, known_by=(text_hash(decode(part)),)) for part in parts]
