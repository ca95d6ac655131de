"""Memory of a process, split as Linux does, sampled while it works; and a limit on it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

_INTERVAL = 0.005
"""Seconds between two samples."""
_FIELDS = ("RssAnon", "RssFile")
MB = 2**20


class Sampler:
    """Samples anonymous memory and file pages of this process in a thread.

    Attributes:
        anon: Largest anonymous memory so far, bytes: what cannot be dropped and read again.
        file: Largest resident file pages so far, bytes: libraries and mapped weights, which can.
    """

    def __init__(self) -> None:
        self.anon = self.file = 0
        self.sample()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def sample(self) -> None:
        """Take one sample now."""
        lines = (line.split() for line in Path("/proc/self/status").read_text("ascii").splitlines() if "Rss" in line)
        sizes = {name.rstrip(":"): int(kilobytes) * 1024 for name, kilobytes, _ in lines}
        anon, file = (sizes[name] for name in _FIELDS)
        self.anon, self.file = max(self.anon, anon), max(self.file, file)

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.sample()

    def end(self) -> dict[str, float]:
        """Stop, and return both peaks in MB (2**20 bytes)."""
        self._ended.set()
        self._thread.join()
        self.sample()
        return {"anon_mb": round(self.anon / MB, 1), "file_mb": round(self.file / MB, 1)}


def read_bytes() -> int:
    """Bytes that this process caused to be read from disk so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text("ascii").splitlines())
    return int(fields["read_bytes"])


def forget_files(folder: Path) -> None:
    """Drop the files' pages from the page cache, so that a limited process pays for those that it reads."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_files(folder: Path) -> None:
    """Read the files, so that the page cache has them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(2**22):
                    pass


class Limit:
    """A control group with a limit on memory, file pages included; a context manager that removes it afterwards.

    Works for root with either version of Linux's control groups.

    Args:
        megabytes: The limit.

    Raises:
        OSError: None can be made here.
    """

    def __init__(self, megabytes: int) -> None:
        root = Path("/sys/fs/cgroup")
        second = (root / "cgroup.controllers").exists()
        self._folder = (root if second else root / "memory") / f"edgepeft-bench-{os.getpid()}"
        self._folder.mkdir()
        name = "memory.max" if second else "memory.limit_in_bytes"
        try:
            (self._folder / name).write_text(str(megabytes * MB), encoding="ascii")
        except OSError:
            self._folder.rmdir()
            raise

    @property
    def processes(self) -> Path:
        """The file to which a process writes its id to be limited."""
        return self._folder / "cgroup.procs"

    def __enter__(self) -> Limit:
        return self

    def __exit__(self, *_: object) -> None:
        for _attempt in range(50):  # a process that was killed leaves the group a moment later
            try:
                self._folder.rmdir()
                return
            except OSError:
                time.sleep(0.1)
