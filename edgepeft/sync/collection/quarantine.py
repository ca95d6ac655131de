"""The quarantine: refused files with their reasons, up to a maximum size."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path

from edgepeft.intake.refusal import Refusal
from edgepeft_runtime.files.durable import make_folder, write_atomically

MAX_QUARANTINE_BYTES = 2**30
"""Largest size of the quarantine, reasons included. Beyond that, refusals are only recorded in the ledger."""

_BLOCK = 2**12


class Quarantine:
    """A folder per code, and in it a folder per refused file: ``reason.json``, ``update`` and ``sidecar``.

    Args:
        path: Folder of the quarantine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def folder(self, refusal: Refusal, key: str) -> Path:
        """Return the folder of a refused file; ``key`` distinguishes files with the same reason."""
        return self._path / refusal.code / key[:16]

    def keep(self, folder: Path, refusal: Refusal, at: int, content: bytes | None, sidecar: bytes | None) -> None:
        """Write the reason of a refusal, then the file and its sidecar, until there is no more room.

        Raises:
            SyncError: The quarantine cannot be written.
        """
        reason = json.dumps({**refusal.to_dict(), "at": at}, ensure_ascii=False, indent=2).encode()
        for name, part in (("reason.json", reason), ("update", content), ("sidecar", sidecar)):
            if part is None:
                continue
            if self._size + _on_disk(len(part)) > MAX_QUARANTINE_BYTES:
                break
            make_folder(folder)
            write_atomically(folder / name, [part])
            self._size += _on_disk(len(part))

    @cached_property
    def _size(self) -> int:
        """Bytes of all files, counted once and then updated."""
        files = (Path(root) / name for root, _, names in os.walk(self._path) for name in names)
        return sum(_on_disk(os.path.getsize(path)) for path in files)


def _on_disk(size: int) -> int:
    """Return the bytes that a file uses on the disk, rounded up to whole blocks."""
    return -(-size // _BLOCK) * _BLOCK
