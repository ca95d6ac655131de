"""Hash large files in parts: in several threads, and so that the good parts of a damaged transfer are known."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from edgepeft_runtime.files.regular import open_regular

PART = 2**24
"""Bytes of each part of a file but the last."""

_BUFFER = 2**20
_THREADS = 4
"""Most threads: SHA-256 is limited by memory beyond that."""

T = TypeVar("T")


def part_hashes(path: str | Path, size: int) -> tuple[str, ...]:
    """Return the SHA-256 of each part of a file of ``size`` bytes, in lower-case hex; raises ``OSError``."""
    return tuple(in_threads(lambda start: hash_of_part(path, start), range(0, size, PART)))


def hash_of_part(path: str | Path, start: int) -> str:
    """Return the SHA-256 of the part that begins at ``start``; of fewer bytes where the file ends before its end."""
    digest, left = hashlib.sha256(), PART
    buffer = memoryview(bytearray(_BUFFER))
    with os.fdopen(open_regular(path, follow=True), "rb", buffering=0) as file:
        file.seek(start)
        while left and (count := file.readinto(buffer[: min(left, _BUFFER)])):
            digest.update(buffer[:count])  # without the interpreter's lock
            left -= count
    return digest.hexdigest()


def in_threads(function: Callable[[T], str], items: Iterable[T]) -> Iterator[str]:
    """Return the results in order, computed by as many threads as this process may use, but at most four."""
    listed: Sequence[T] = list(items)
    with ThreadPoolExecutor(max(1, min(_THREADS, _processors(), len(listed)))) as threads:
        yield from threads.map(function, listed)


def _processors() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
    return os.cpu_count() or 1 if affinity is None else len(affinity(0))
