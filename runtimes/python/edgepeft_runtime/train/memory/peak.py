"""The peak memory of this process, as a whole and by kind."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_STATUS = Path("/proc/self/status")
_SYSTEM = Path("/proc/meminfo")
_INTERVAL = 0.005
"""Seconds between two samples."""


class Memory(NamedTuple):
    """Memory of a process in bytes.

    Attributes:
        anonymous: what the system cannot drop: the heap. Where it is not known by kind, everything.
        file: pages of files, such as mapped weights and libraries, that the system can drop and read again.
    """

    anonymous: int
    file: int


def peak_memory() -> int:
    """Return the largest resident set of this process so far, in bytes; 0 where the system does not report it."""
    if _STATUS.is_file():  # Linux: ru_maxrss would count the parent's memory too, as a fork has it until it runs
        return _status().get("VmHWM", 0)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def memory() -> Memory:
    """Return the memory of this process now; its peak where the system does not report it by kind."""
    if not _STATUS.is_file():
        return Memory(peak_memory(), 0)
    now = _status()
    return Memory(now.get("RssAnon", 0), now.get("RssFile", 0))


def available_memory() -> int:
    """Return the bytes that the system can give to processes without swapping; 0 where it does not report them."""
    return _sizes(_SYSTEM).get("MemAvailable", 0) if _SYSTEM.is_file() else 0


class PeakSampler:
    """Samples the memory of this process by kind, in a thread, while it is used as a context."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._peak = Memory(0, 0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak(self) -> Memory:
        """The largest values so far; both need not have been reached at the same time."""
        return self._peak if _STATUS.is_file() else Memory(peak_memory(), 0)

    def _sample(self) -> None:
        while _STATUS.is_file():
            now = _status()
            found = Memory(now.get("RssAnon", 0), now.get("RssFile", 0))
            self._peak = Memory(*map(max, self._peak, found))
            if self._ended.wait(_INTERVAL):
                return


def _status() -> dict[str, int]:
    """Return the sizes that the kernel reports of this process, in bytes."""
    return _sizes(_STATUS)


def _sizes(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}
