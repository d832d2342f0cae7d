"""What an interrupted run goes on from: parts in a folder, each of one run and no other."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ExciseError
from .artefact import read_artefact, write_artefact
from .output import remove_progress


if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
Tensors = Mapping[str, "Tensor"]
Found = TypeVar("Found")

KIND = "progress"
README = "An unfinished excise run: repeat its command with --resume, or delete this folder.\n"


def digests(asked: Mapping[str, Any]) -> dict[str, str]:
    """Return a short hash of each thing that a result depends on.

    Args:
        asked: JSON values by the name that a message gives them. All that decides the result:
            `core.identity.identity_of` the model, the data with answers and counterfactuals, and
            every option. What cannot change it, such as a batch size, stays out.
    """
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in asked.items()
    }


def check_same(folder: Path, found: Any, asked: Mapping[str, str]) -> None:
    """Refuse what another run has kept.

    Args:
        folder: Where it is.
        found: The digests that were kept with it; anything else is refused too.
        asked: Those of this run.

    Raises:
        ExciseError: Names what differs.
    """
    if found == asked:
        return
    if not isinstance(found, Mapping):
        raise ExciseError(f"{folder} does not say which run it is the progress of: delete it")
    differ = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
    raise ExciseError(
        f"{folder} is the progress of another run, with other {', '.join(differ)}: repeat that "
        "command, delete the folder, or leave out --resume"
    )


@dataclass(frozen=True)
class Progress:
    """A folder with a part for each step that is done; each is written whole or not at all."""

    folder: Path | None
    """None keeps nothing."""

    def load(self, name: str, asked: Config) -> tuple[Config, Tensors] | None:
        """Return a part that was kept, or None.

        Raises:
            ExciseError: It is of another run, or damaged.
        """
        if self.folder is None or not (self.folder / name).exists():
            return None
        config, tensors = read_artefact(self.folder / name, KIND)
        check_same(self.folder, config.get("asked"), digests(asked))
        return config, tensors

    def keep(self, name: str, asked: Config, config: Config, tensors: Tensors) -> None:
        """Keep a part, in place of an older one.

        Raises:
            ExciseError: It cannot be written.
        """
        if self.folder is not None:
            head = {**config, "asked": digests(asked)}
            write_artefact(self.folder / name, KIND, head, tensors, README, overwrite=True)

    def part(
        self,
        name: str,
        asked: Config,
        make: Callable[[], Found],
        pack: Callable[[Found], tuple[Config, Tensors]],
        unpack: Callable[[Config, Tensors], Found],
    ) -> Found:
        """Return what an earlier run has found, or make it and keep it.

        Args:
            name: Of the part.
            asked: All that it depends on; see `digests`.
            make: Makes it.
            pack: To JSON values and tensors.
            unpack: The way back.

        Raises:
            ExciseError: The part is of another run, or cannot be written.
        """
        kept = self.load(name, asked)
        if kept is not None:
            return unpack(*kept)
        found = make()
        if self.folder is not None:
            self.keep(name, asked, *pack(found))
        return found

    def forget(self) -> None:
        """Remove all of it, once its run is done."""
        remove_progress(self.folder)
