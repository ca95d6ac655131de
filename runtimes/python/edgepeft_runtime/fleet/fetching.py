"""Brings files whose hash and size were signed from a remote, without fetching again what has arrived before."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from edgepeft_runtime.bundle.bundle import check_declared
from edgepeft_runtime.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest
from edgepeft_runtime.bundle.specs import FileEntry, ListedFile
from edgepeft_runtime.errors import EdgepeftError, WrongHash
from edgepeft_runtime.files.durable import make_folder, sync_file
from edgepeft_runtime.files.hashing import PART, part_hashes
from edgepeft_runtime.files.regular import read_regular
from edgepeft_runtime.files.staging import replace_directory
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet.rounds import blob
from edgepeft_runtime.fleet.transports.transport import Transport, fetch
from edgepeft_runtime.fleet.trust import check_hash


def fetch_verified(transport: Transport, name: str, into: Path, entry: FileEntry) -> None:
    """Bring a file to ``into``, verified and flushed; where an earlier attempt left other bytes, fetch those again.

    Raises:
        TooLarge: it has more bytes than were signed.
        WrongHash: it has other bytes.
        EdgepeftError: it cannot be read.
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
    except WrongHash:
        _keep_good_parts(into, entry)
        raise
    sync_file(into)


def _keep_good_parts(file: Path, entry: FileEntry) -> None:
    """Cut a file off at its first wrong part; without hashes of parts, delete it."""
    expected = entry.parts if isinstance(entry, ListedFile) and entry.parts is not None else ()
    found = part_hashes(file, entry.bytes) if expected else ()
    good = next((index for index, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]), 0)
    if good == 0:
        file.unlink()
    else:
        os.truncate(file, PART * good)


def fetch_manifest(transport: Transport, entry: FileEntry, bundles: Path) -> Manifest:
    """Bring the manifest of a bundle, and check the names in it before anything is written under them.

    Raises:
        WrongHash: it does not have the signed hash.
        EdgepeftError: it cannot be read.
        BundleError: it is no manifest, or names a file outside the bundle.
    """
    path = _incoming(bundles) / entry.sha256
    fetch_verified(transport, blob(entry.sha256), path, entry)
    manifest = Manifest.from_json(read_regular(path, MAX_MANIFEST_BYTES, follow=False))
    check_declared(manifest)
    return manifest


def fetch_bundle(transport: Transport, entry: FileEntry, manifest: Manifest, bundles: Path) -> Path:
    """Bring the files of a bundle that this device lacks, and make the bundle of them when all are there.

    Args:
        transport: has them under their hashes.
        entry: hash and size of the manifest.
        manifest: the result of ``fetch_manifest``.
        bundles: the folder of the device's bundles, each named by the hash of its manifest.

    Returns:
        The folder of the bundle, in ``bundles``.
    """
    incoming = _incoming(bundles)
    files: dict[str, FileEntry] = {**manifest.files, MANIFEST: entry}
    for wanted in manifest.files.values():
        path = incoming / wanted.sha256
        if not path.exists():
            _reuse(bundles, wanted, path)
        fetch_verified(transport, blob(wanted.sha256), path, wanted)
    with replace_directory(bundles / entry.sha256) as folder:
        for name, fetched in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _link(incoming / fetched.sha256, folder / name)
    return bundles / entry.sha256


def _incoming(bundles: Path) -> Path:
    """Return where files arrive, each under its hash, whichever bundle they are of."""
    folder = bundles / "incoming"
    make_folder(folder)
    return folder


def _reuse(bundles: Path, wanted: FileEntry, path: Path) -> None:
    """Take a file from another bundle of this device, if one claims to have it; its hash is verified afterwards."""
    for other in sorted(bundles.glob(f"*/{MANIFEST}")):
        with suppress(OSError, EdgepeftError):
            files = Manifest.from_json(read_regular(other, MAX_MANIFEST_BYTES, follow=False)).files
            for name, entry in files.items():
                if entry == wanted and (other.parent / name).stat().st_size == wanted.bytes:
                    _link(other.parent / name, path)
                    return


def _link(source: Path, target: Path) -> None:
    """Link a file under a second name, or copy it where the file system cannot. Neither is ever changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
