"""What pruning is calibrated on: a text, a dataset, or what the model itself writes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .terminal import say


if TYPE_CHECKING:
    from ..core.data import Sample
    from ..core.loading import Loaded

SELF = "self"
DOCUMENTS = 50
"""Of a dataset, read for each sample: enough for most texts."""


@dataclass(frozen=True)
class Calibration:
    """Where calibration samples come from.

    Raises:
        ExciseError: The source is missing, empty, or no text: before a model is loaded.
    """

    name: str
    n: int
    length: int
    seed: int

    def __post_init__(self):
        from ..core.errors import ExciseError

        if self.n < 1 or self.length < 2:
            raise ExciseError(
                f"--samples {self.n} --length {self.length}: give at least 1 sample of 2 tokens"
            )
        if self.name != SELF:
            self._documents()

    def samples(self, loaded: "Loaded", placeholders: bool = False) -> "list[Sample]":
        """Return the samples, drawn by the seed.

        Args:
            loaded: Model and tokenizer.
            placeholders: Whether lengths are enough, so that nothing need be written.

        Raises:
            ExciseError: The text is shorter than one sample, or the model too short for it.
        """
        from ..core.data import Sample, check_length, encode_texts

        if self.name == SELF:
            sizes = [Sample((0,) * self.length)] * self.n
            check_length(sizes, loaded.model.config)
            return sizes if placeholders else _written(loaded, self.n, self.length, self.seed)
        documents = self._documents()
        found = encode_texts(loaded.tokenizer, documents, self.n, self.length, self.seed)
        if len(found) < self.n:
            say(f"{self.name} gives only {len(found)} of {self.n} samples", err=True)
        return found

    def __str__(self) -> str:
        return f"{self.name}, {self.n} samples of {self.length} tokens, seed {self.seed}"

    def _documents(self) -> list[str]:
        from ..core.documents import BUILTIN, read_documents

        documents = read_documents(self.name, self.n * DOCUMENTS)
        return documents[::2] if self.name == BUILTIN else documents  # the others are to measure on


def calibration_of(options: dict[str, Any]) -> Calibration:
    """Return what to calibrate on."""
    names = ("calibration", "samples", "length", "seed")
    return Calibration(*(options[name] for name in names))


def _written(loaded: "Loaded", n: int, length: int, seed: int) -> "list[Sample]":
    """Let the model write: sampled, each text on from a word drawn from its vocabulary.

    Data-free calibration as by Liu et al. (2023, LLM-QAT, arXiv 2305.17888): a first token at
    random, then the model's own distribution. A text that ends goes on with the next.
    """
    import random

    from tqdm import tqdm

    from ..core.data import Sample
    from ..core.generation import Decoding, complete
    from ..core.texts import text_hash

    drawn = random.Random(seed)
    special = set(loaded.tokenizer.all_special_ids)
    words = sorted(set(loaded.tokenizer.get_vocab().values()) - special)
    ids: list[int] = []
    with tqdm(total=n * length, desc="writing", unit="token", disable=None) as bar:
        while len(ids) < n * length:
            starts = [(drawn.choice(words),) for _ in range(min(8, n))]
            decoding = Decoding(1, length - 1, top_p=1.0, seed=seed)
            for index, (written,) in complete(loaded.model, starts, decoding, 8):
                ids += [*starts[index], *written]
                bar.update(1 + len(written))
    parts = [tuple(ids[i * length : (i + 1) * length]) for i in range(n)]
    return [Sample(part, known_by=(text_hash(loaded.tokenizer.decode(part)),)) for part in parts]
