"""Fetches updates from folders, and keeps those that are whole under the hash of their content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from edgepeft.sync.collection import ort_checkpoints
from edgepeft.sync.errors import SyncError
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.errors import EdgepeftError, UpdateError
from edgepeft_runtime.files.durable import make_folder, sync_directory, writing
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.train.update import changed_nothing, check_update, notice_unchanged, read_update, write_update

SUFFIX = ".safetensors"
MAX_BYTES = 2**30
"""Largest update that is taken, in bytes."""

_HEADER_BYTES = 2**24
"""Room for the header of an update: names, shapes, recipe."""

_PIECE = 2**20


@dataclass(frozen=True)
class Received:
    """An update: where it was found, and where it is kept."""

    source: Path
    path: Path


@dataclass(frozen=True)
class Refused:
    """A file that was left where it is: ``reference`` names the kind of error, ``reason`` says what is wrong."""

    source: Path
    reference: str
    reason: str


@dataclass(frozen=True)
class Pulled:
    """What :func:`pull` did.

    Attributes:
        accepted: updates that are new.
        already_there: updates that an earlier pull, or an earlier file of this one, had brought.
        refused: files that are no good.
    """

    accepted: tuple[Received, ...]
    already_there: tuple[Received, ...]
    refused: tuple[Refused, ...]


def pull(
    places: Sequence[str | Path],
    into: str | Path,
    bundle: str | Path | Bundle | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> Pulled:
    """Copy the updates that lie in ``places`` to ``into``, each as ``<sha256>.safetensors``.

    Pulling the same update again, under whatever name, changes nothing. What is checked is the copy, so nobody can
    change a file between the check and its use.

    Args:
        places: folders; their own ``*.safetensors`` are looked at, not those of folders in them, and checkpoints of
            ONNX Runtime Training (``checkpoint``, ``*.ckpt``), which are kept as updates.
        into: made if it is missing.
        bundle: refuse updates that do not belong to it, too.
        max_bytes: refuse larger files.

    Raises:
        SyncError: a place is no folder, or ``into`` cannot be written.
        BundleError: the bundle is damaged.
    """
    into, folders = Path(into), [_folder(place) for place in places]
    if bundle is not None and not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    if bundle is not None:
        max_bytes = min(max_bytes, _expected_bytes(bundle))
    accepted: list[Received] = []
    already: list[Received] = []
    refused: list[Refused] = []
    with writing(into, SyncError):
        make_folder(into)
    with staged(into / "update", error=SyncError) as folder:
        for source in (file for place in folders for file in _candidates(place)):
            try:
                received, new = _receive(source, into, folder / "copy", bundle, max_bytes)
            except UpdateError as error:
                refused.append(Refused(source, error.reference, _reason(error)))
            else:
                (accepted if new else already).append(received)
        sync_directory(into)
    return Pulled(tuple(accepted), tuple(already), tuple(refused))


def _folder(place: str | Path) -> Path:
    folder = Path(place)
    if not folder.is_dir():
        raise SyncError(
            "no-such-remote",
            f"There is no folder {place}.",
            context=None,
            hint="give folders that devices put their updates in; mount one that lies elsewhere.",
        )
    return folder


def _candidates(folder: Path) -> Iterator[Path]:
    """Files that claim to be updates; a name that begins with a dot is one that is still being written."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as failure:
        raise SyncError(
            "cannot-read-remote", f"Cannot read {folder}.", context=str(failure), hint="check the permissions."
        ) from failure
    wanted = (f"*{SUFFIX}", *ort_checkpoints.NAMES)
    return (folder / name for name in names if any(fnmatchcase(name, w) for w in wanted) and not name.startswith("."))


def _receive(source: Path, into: Path, copy: Path, bundle: Bundle | None, max_bytes: int) -> tuple[Received, bool]:
    """Copy, check the copy, and give it its name; whether it is new."""
    digest = _copy(source, copy, max_bytes)
    if not source.name.endswith(SUFFIX):
        write_update(copy, ort_checkpoints.update_of_checkpoint(copy, bundle))
        digest = sha256_of(copy)
    kept = into / f"{digest}{SUFFIX}"
    _check(source, copy, bundle)
    if kept.is_file() and not kept.is_symlink() and sha256_of(kept) == digest:
        return Received(source, kept), False
    copy.replace(kept)
    return Received(source, kept), True


def _copy(source: Path, copy: Path, max_bytes: int) -> str:
    """Copy a regular file of at most ``max_bytes``; returns its SHA-256."""
    descriptor = _open(source, max_bytes)
    digest, size = hashlib.sha256(), 0
    with os.fdopen(descriptor, "rb") as reader, copy.open("wb") as writer:
        while piece := reader.read(_PIECE):
            size += len(piece)
            if size > max_bytes:
                raise _too_large(source, size, max_bytes)
            digest.update(piece)
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())
    return digest.hexdigest()


def _open(source: Path, max_bytes: int) -> int:
    # Not following links, and not waiting for the other end of a pipe: what a device left is not to be trusted.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if source.is_symlink():
        raise _not_regular(source, "a link")
    try:
        descriptor = os.open(source, flags)
    except OSError as failure:
        raise UpdateError(
            "cannot-read-file", f"Cannot read {source}.", context=str(failure), hint="check the permissions."
        ) from failure
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_size <= max_bytes:
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _not_regular(source, "a folder" if stat.S_ISDIR(found.st_mode) else "no file")
    raise _too_large(source, found.st_size, max_bytes)


def _check(source: Path, copy: Path, bundle: Bundle | None) -> None:
    try:
        update = read_update(copy)
    except UpdateError as error:  # name the file the user knows, not the copy
        message = error.message.replace(str(copy), str(source))
        raise UpdateError(error.reference, message, context=error.context, hint=error.hint) from error
    if bundle is not None:
        check_update(update, bundle)
        if changed_nothing(update.parameters, bundle.adapter()):
            notice_unchanged(str(source))


def _expected_bytes(bundle: Bundle) -> int:
    """No update of the bundle is larger, nor a checkpoint, which may hold two moments of each parameter beside it."""
    return 3 * bundle.manifest.files["adapter.safetensors"].bytes + _HEADER_BYTES


def _reason(error: EdgepeftError) -> str:
    return error.message if error.context is None else f"{error.message}\n{error.context}"


def _not_regular(source: Path, kind: str) -> UpdateError:
    hint = "let the device write the file itself."
    return UpdateError("not-a-regular-file", f"{source} is {kind}.", context=None, hint=hint)


def _too_large(source: Path, size: int, most: int) -> UpdateError:
    return UpdateError(
        "too-large",
        f"{source} is larger than an update may be.",
        context=f"at least {size} bytes; at most {most} are taken",
        hint="an update holds the trained tensors only.",
    )
