"""Publish bundles: each file is stored and sent under its hash, so an unchanged file is sent once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from edgepeft.sync.errors import DamagedWorkspace
from edgepeft.sync.transports import HostTransport
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.bundle.manifest import MANIFEST, Manifest
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.errors import DamagedFile
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet.rounds import BLOBS, blob

_PIECE = 2**20


def keep_bundle(published: Path, bundle: Bundle) -> FileEntry:
    """Copy the files of a bundle to ``blobs/<sha256>``, and return hash and size of its manifest.

    Existing files are not written again. No file is ever removed, since a published round may name it.

    Raises:
        EdgepeftError: A file cannot be written, or no longer matches the manifest (``damaged-file``).
    """
    content = (bundle.path / MANIFEST).read_bytes()
    entry = FileEntry(hashlib.sha256(content).hexdigest(), len(content))
    make_folder(published / BLOBS)
    for name, wanted in {**bundle.manifest.files, MANIFEST: entry}.items():
        target = published / blob(wanted.sha256)
        if not (target.is_file() and sha256_of(target) == wanted.sha256):
            write_atomically(target, _verified(bundle.path / name, wanted))
    return entry


def send_bundle(published: Path, entry: FileEntry, remote: HostTransport, *, resend: bool) -> None:
    """Send the files of a bundle that a remote lacks, its manifest last.

    Args:
        published: The folder that contains them under their hashes.
        entry: Hash and size of the manifest.
        remote: The remote to send them to.
        resend: Also send files that the remote has already.

    Raises:
        EdgepeftError: The remote cannot be written, or a file here is damaged (``damaged-workspace``).
    """
    files = Manifest.from_json((published / blob(entry.sha256)).read_bytes()).files.values()
    for wanted in dict.fromkeys((*files, entry)):
        name = blob(wanted.sha256)
        if not resend and remote.size(name) == wanted.bytes:
            continue
        if sha256_of(published / name) != wanted.sha256:
            hint = "publish the bundle again, with --with-bundle."
            raise DamagedWorkspace(f"{published / name} is damaged.", context=None, hint=hint)
        remote.upload(name, published / name)


def _verified(path: Path, entry: FileEntry) -> Iterator[bytes]:
    """Yield the pieces of a file; raises ``DamagedFile`` at the end if it has changed since it was verified."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            yield piece
    if digest.hexdigest() != entry.sha256:
        what = f"{path} has changed while it was read."
        raise DamagedFile(what, context=None, hint="publish again while no other program writes the bundle.")
