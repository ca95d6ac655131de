"""Files in folders that others may write to as well: no link is followed, no file is shared by accident."""

from __future__ import annotations

from pathlib import Path

from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.files.durable import make_folder, write_atomically, writing

PRIVATE, COMMON = 0o600, 0o644
"""Permissions of files that only their owner may read, and of others."""


def write_new(path: str | Path, content: bytes, *, mode: int = COMMON) -> None:
    """Write a file anew, whoever has put something in its place; raises :class:`FleetError` (``cannot-write-file``)."""
    write_atomically(path, [content], error=FleetError, mode=mode)


def make_folders(root: Path, name: str) -> Path:
    """Make the folders that a file of this name needs below ``root``, none of them a link; returns the file's path.

    Raises:
        FleetError: one is a link (``not-a-regular-file``), or cannot be made (``cannot-write-file``).
    """
    folder = root
    *parents, last = name.split("/")
    for parent in parents:
        folder /= parent
        if folder.is_symlink():
            hint = "somebody has put it there to lead files elsewhere; remove it."
            raise FleetError("not-a-regular-file", f"{folder} is a link.", context=None, hint=hint)
        with writing(folder, FleetError):
            make_folder(folder)
    return folder / last
