"""The preloaded library that makes file operations fail (``faults.c``), from Python."""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
KINDS = {
    "disk full, once": 1,
    "I/O error, once": 2,
    "disk full from then on": 3,
    "cut short, then disk full": 4,
    "killed before": 5,
    "killed after": 6,
    "cut short, then killed": 7,
}
"""Kinds of fault by their names on the page, and their numbers in the library."""

OF_WRITES = ("cut short, then disk full", "cut short, then killed")
"""Kinds that are the same as others for an operation that writes no bytes."""

OPERATIONS = ("open", "write", "sync", "rename", "exchange", "unlink", "mkdir", "rmdir", "truncate", "link")
_RECORD = struct.Struct("=IIIIQQQ")


@dataclass(frozen=True)
class Operation:
    """One file operation of a command, as the library has written it down.

    Args:
        name: one of ``OPERATIONS``.
        emptied: of ``open``: the file was emptied.
        path, target: absolute; ``target`` of renames and links.
        inode: of the file or folder that was opened, written, flushed or made.
        offset: where bytes were written.
        data: the bytes; ``size`` their number, or the size a file was cut to.
    """

    name: str
    emptied: bool
    path: str
    target: str
    inode: int
    offset: int
    data: bytes
    size: int


def why_not() -> str | None:
    """Why the library cannot be used here, ``None`` where it can."""
    if os.uname().sysname != "Linux":
        return "the preloaded library is for Linux"
    return None if shutil.which("gcc") else "there is no gcc to build the preloaded library with"


def build(folder: Path) -> Path:
    """Compile the library into a folder; returns its path."""
    library = folder / "faults.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"], check=True
    )
    return library


def arm(folder: Path, kind: int = 0, number: int = 0, log: int = -1) -> None:
    """From now on count operations below a folder, and let the one of this number, from 1, fail."""
    ctypes.CDLL(None).faults_arm(os.fsencode(folder), kind, ctypes.c_long(number), log)


def disarm() -> int:
    """Let nothing fail any more; returns how many operations there were."""
    return int(ctypes.CDLL(None).faults_disarm())


def operations(log: bytes) -> Iterator[Operation]:
    """Parse the operations of a log."""
    position = 0
    while position < len(log):
        op, flags, a, b, inode, offset, size = _RECORD.unpack_from(log, position)
        position += _RECORD.size
        name, data_size = OPERATIONS[op], size if OPERATIONS[op] == "write" else 0
        path, target = os.fsdecode(log[position : position + a]), os.fsdecode(log[position + a : position + a + b])
        position += a + b
        yield Operation(name, bool(flags), path, target, inode, offset, log[position : position + data_size], size)
        position += data_size
