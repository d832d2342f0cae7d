"""How much memory this process holds, and held at most."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


def resident() -> int:
    """Return the bytes this process holds now: on the GPU if torch uses one, else in RAM."""
    if (cuda := _cuda()) is not None:
        return cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def unpageable() -> int:
    """Return the bytes of `resident` that lie in no file, so that they must stay in memory.

    Where the system does not tell (only Linux does), all of `resident`.
    """
    status = Path("/proc/self/status")
    if _cuda() is not None or not status.is_file():
        return resident()
    rows = [row.split() for row in status.read_text().splitlines()]
    return sum(int(row[1]) for row in rows if row[0] in ("RssAnon:", "RssShmem:")) * 1024


def on_disk(model: Any) -> int:
    """Return the bytes of a model's weights that lie in mapped files; see `core.offload`."""
    stored = ((tensor, tensor.untyped_storage()) for tensor in model.parameters())
    return sum(tensor.nbytes for tensor, storage in stored if storage.filename is not None)


def held_with(model: Any) -> int:
    """Return the bytes held now, all of a model's weights among them.

    Loaders map a checkpoint, whose pages count only once they were read: so they are read here. Of
    a model on disk (`on_disk`) they never have to stay: the rest is what counts.
    """
    if on_disk(model):
        return unpageable()
    _read_pages(model)
    return max(resident(), sum(parameter.nbytes for parameter in model.parameters()))


def peak() -> int:
    """Return the most bytes this process has held so far, of the same kind as `resident`."""
    if (cuda := _cuda()) is not None:
        return cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # the high-water mark of getrusage survives fork and exec
    if status.is_file():
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass
class Held:
    """Bytes held by a block of code."""

    start: int
    most: int

    @property
    def added(self) -> int:
        """The most bytes held on top of what was there at the start."""
        return self.most - self.start


@contextmanager
def watched(seconds: float = 0.01, count: Callable[[], int] = resident) -> Iterator[Held]:
    """Watch what a block holds, by looking every so many seconds: short peaks may be missed.

    Args:
        seconds: Between two looks.
        count: What is looked at: `resident` or `unpageable`.
    """
    held = Held(count(), count())
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(seconds):
            held.most = max(held.most, count())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        ended.set()
        thread.join()
        held.most = max(held.most, count())


def available() -> int:
    """Return the bytes this machine (or the current GPU) can still give."""
    if (cuda := _cuda()) is not None:
        return cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def readable(n: float) -> str:
    """Render a number of bytes, as in `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(n) < 1024:
            return f"{n:.0f} {unit}"
        n /= 1024
    return f"{n:.1f} GiB"


@dataclass(frozen=True)
class Forecast:
    """What a run will need, before it starts; every door returns one for `dry_run=True`."""

    peak: int
    """Bytes held at most, the model included unless it lies on disk."""
    seconds: float = 0.0
    """Right to a factor of two; zero if nothing was timed or counted."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Numbers that it was counted from, by what is counted, as in `samples per pass`."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """Bytes by what takes them. They need not add up to the peak: some are never held together."""

    def __str__(self) -> str:
        time = f"{self.seconds / 60:.0f} min" if self.seconds > 90 else f"{self.seconds:.0f} s"
        parts = ", ".join(f"{name} {readable(size)}" for name, size in self.parts.items() if size)
        needed = f"about {time}, " if self.seconds else ""
        needed += f"peak memory about {readable(self.peak)}" + (f" ({parts})" if parts else "")
        counts = ", ".join(f"{n:,} {name}" for name, n in self.counts.items())
        return f"{counts}; {needed}" if counts else needed


def _read_pages(model: Any) -> None:
    """Read a byte of every page of the weights that are on the CPU."""
    import torch

    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            data = torch.empty(0, dtype=torch.uint8).set_(parameter.untyped_storage())
            data[::4096].sum()


def _cuda():
    import torch

    return torch.cuda if torch.cuda.is_available() and torch.cuda.is_initialized() else None
