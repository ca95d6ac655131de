"""Measure a reader over many inputs: foreign errors, and time and memory of the worst input."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgepeft_runtime.errors import EdgepeftError

BAR_SECONDS, BAR_MEGABYTES = 1.0, 256.0
_HANGS = 60


class Hang(BaseException):
    """A reader that does not return."""


@dataclass
class Found:
    """What came of a target's inputs.

    Attributes:
        inputs: how many there were.
        refused: how many of them raised an error of ours.
        escaped: other errors, by their type and text, each with the first input that led to it.
        seconds: CPU time of the slowest input.
        megabytes: what the process grew by, at most, while it read one input; 0 where the system does not report it.
    """

    inputs: int = 0
    refused: int = 0
    escaped: dict[str, bytes] = field(default_factory=dict)
    escapes: int = 0
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing escaped, and the worst input is within the bars."""
        return not self.escapes and self.seconds <= BAR_SECONDS and self.megabytes <= BAR_MEGABYTES


def tried(read: Callable[[bytes], object], contents: Iterable[bytes]) -> Found:
    """Read each of the inputs."""
    found = Found()
    with _quiet(), _peaks() as peak:
        for content in contents:
            before = peak()
            start = time.process_time()
            _read(read, content, found)
            found.seconds = max(found.seconds, time.process_time() - start)
            found.megabytes = max(found.megabytes, (peak() - before) / 2**10)
            found.inputs += 1
    return found


def _read(read: Callable[[bytes], object], content: bytes, found: Found) -> None:
    signal.alarm(_HANGS)
    try:
        read(content)
    except EdgepeftError as error:
        found.refused += 1
        str(error).encode()  # the message can be printed
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        found.escapes += 1
        found.escaped.setdefault(f"{type(error).__name__}: {str(error)[:100]}", content)
    finally:
        signal.alarm(0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log and the warnings that damaged files lead to; a reader that hangs is interrupted."""

    def stop(*_: object) -> None:
        raise Hang(f"no answer in {_HANGS} s")

    log = logging.getLogger("edgepeft_runtime")
    before, level = signal.signal(signal.SIGALRM, stop), log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _peaks() -> Iterator[Callable[[], float]]:
    """Return a function that returns the largest resident size, in kB, since its last call."""
    if not sys.platform.startswith("linux"):
        yield lambda: 0.0
        return
    handle = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def peak() -> float:
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(handle, b"5")  # forget the peak
        return float(found)

    try:
        yield peak
    finally:
        os.close(handle)
