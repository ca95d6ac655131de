"""Collect updates from plain folders, without a fleet, and keep each under the hash of its content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from edgepeft.intake.checks import checked, parsed
from edgepeft.intake.refusal import REFUSALS, Refusal
from edgepeft.sync.collection import ort_checkpoints
from edgepeft.sync.transports import HostFolder
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.durable import made_folder, replace_file, writing
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import sha256_of
from edgepeft_runtime.fleet import signatures
from edgepeft_runtime.fleet.delivery import UPDATE_SUFFIX
from edgepeft_runtime.fleet.transports.transport import read
from edgepeft_runtime.train.update import changed_nothing, notice_unchanged, write_update

MAX_BYTES = 2**30
"""Largest update that is accepted, in bytes."""

_TENSORS_OF_A_CHECKPOINT = 3
"""A checkpoint of ONNX Runtime Training may contain two moments in addition to each parameter."""


@dataclass(frozen=True)
class Received:
    """An update: the file it was read from, and the file it is kept in."""

    source: Path
    path: Path


@dataclass(frozen=True)
class Pulled:
    """The result of ``pull``.

    Attributes:
        accepted: Updates that are new.
        already_there: Updates that an earlier pull, or an earlier file of this one, had delivered.
        refused: Files that were refused. They are left in their folders.
    """

    accepted: tuple[Received, ...]
    already_there: tuple[Received, ...]
    refused: tuple[Refusal, ...]


def pull(
    folders: Iterable[str | Path],
    into: str | Path,
    bundle: str | Path | Bundle | None = None,
    *,
    max_bytes: int = MAX_BYTES,
) -> Pulled:
    """Copy the updates in some folders to ``into``, each as ``<sha256>.safetensors``.

    Pulling the same update again, under whatever name, changes nothing. Every file is read once, and the
    bytes that were read are checked and kept.

    Args:
        folders: Folders with ``*.safetensors``, and with checkpoints of ONNX Runtime Training (``checkpoint``,
            ``*.ckpt``), which are kept as updates. Folders in them are not searched.
        into: Folder to keep the updates in, created if it is missing.
        bundle: Also refuse updates that do not belong to this bundle.
        max_bytes: Refuse larger files.

    Raises:
        EdgepeftError: A folder is missing, or ``into`` cannot be written.
        BundleError: The bundle is damaged.
    """
    into, remotes = Path(into), [HostFolder(folder) for folder in folders]
    opened = Bundle.open(bundle) if isinstance(bundle, str | Path) else bundle
    if opened is not None:
        max_bytes = min(max_bytes, _TENSORS_OF_A_CHECKPOINT * opened.adapter_bytes)
    accepted: list[Received] = []
    already: list[Received] = []
    refused: list[Refusal] = []
    with writing(into), made_folder(into), staged(into / "update") as folder:
        for remote in remotes:
            for name in _candidates(remote):
                source = remote.path / name
                try:
                    content = _checked(read(remote, name, max_bytes), source, folder / "file", opened)
                except REFUSALS as error:
                    refused.append(Refusal.of(source, error))
                    continue
                kept = into / f"{signatures.sha256(content)}{UPDATE_SUFFIX}"
                (accepted if _keep(content, kept, folder / "file") else already).append(Received(source, kept))
    return Pulled(tuple(accepted), tuple(already), tuple(refused))


def _candidates(remote: HostFolder) -> Iterator[str]:
    """Yield the names of possible updates. A file whose name starts with a dot is still being written."""
    patterns = (f"*{UPDATE_SUFFIX}", *ort_checkpoints.NAMES)
    for name in sorted([*remote.folders(""), *remote.others("")]):
        if not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in patterns):
            yield name


def _checked(content: bytes, source: Path, scratch: Path, bundle: Bundle | None) -> bytes:
    """Return the bytes of a good update; those of a checkpoint become the bytes of an update first."""
    if source.suffix != UPDATE_SUFFIX:
        scratch.write_bytes(content)
        content = write_update(scratch, ort_checkpoints.update_of_checkpoint(scratch, bundle)).read_bytes()
    if bundle is None:
        parsed(content, source)
    else:
        update = checked(content, source, bundle.manifest, bundle.adapter_sha256)
        if changed_nothing(update.parameters, bundle.adapter()):
            notice_unchanged(str(source))
    return content


def _keep(content: bytes, kept: Path, scratch: Path) -> bool:
    """Write an update under its hash, flushed; return ``False`` if it was there already, undamaged."""
    if kept.is_file() and not kept.is_symlink() and sha256_of(kept) == kept.stem:
        return False
    scratch.write_bytes(content)
    replace_file(scratch, kept)
    return True
