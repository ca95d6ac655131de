"""Brings files whose hash and size were signed from a remote, without fetching again what has arrived before."""

from __future__ import annotations

from pathlib import Path

from edgepeft_runtime.bundle.manifest import FileEntry
from edgepeft_runtime.errors import FleetError, WrongHash
from edgepeft_runtime.files.durable import sync_file
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet.transports.transport import Transport, fetch
from edgepeft_runtime.fleet.trust import check_hash


def fetch_verified(transport: Transport, name: str, into: Path, entry: FileEntry) -> None:
    """Bring a file to ``into``, verified and flushed; where an earlier attempt left other bytes, fetch all again.

    Raises:
        FleetError: it cannot be read, or does not have the signed size and hash (``too-large``, ``wrong-hash``).
    """
    resumed = into.exists()
    try:
        _fetch(transport, name, into, entry)
    except WrongHash:
        if not resumed:
            raise
        _fetch(transport, name, into, entry)


def _fetch(transport: Transport, name: str, into: Path, entry: FileEntry) -> None:
    fetch(transport, name, into, entry.bytes)
    try:
        check_hash(name, entry.sha256, sha256_of(into))
    except FleetError:
        into.unlink()
        raise
    sync_file(into)
