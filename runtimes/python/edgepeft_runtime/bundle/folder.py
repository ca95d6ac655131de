"""The files of a bundle's directory: listed in the manifest by size and hash, and checked against it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from edgepeft_runtime.bundle.manifest import MANIFEST, Manifest
from edgepeft_runtime.bundle.program_checks import WEIGHTS
from edgepeft_runtime.bundle.specs import ListedFile
from edgepeft_runtime.errors import CannotReadFile, DamagedFile, MissingFile, NotARegularFile, UndeclaredFile
from edgepeft_runtime.files.hashing import PART, hash_of_part, in_threads, part_hashes
from edgepeft_runtime.files.tensorfile import sha256_of

FETCH_AGAIN = "copy the bundle to this machine again, or prepare it again."


def listed(path: Path) -> ListedFile:
    """Return a file as the manifest lists it: its hash and size, and the hashes of its parts if it has several."""
    size = path.stat().st_size
    if size <= PART:
        return ListedFile(sha256_of(path), size, None)
    with ThreadPoolExecutor(1) as thread:
        whole = thread.submit(sha256_of, path)
        parts = part_hashes(path, size)
        return ListedFile(whole.result(), size, parts)


def listed_files(folder: Path) -> dict[str, ListedFile]:
    """Return all files below a folder except its manifest, by their names in a bundle."""
    names = sorted(name for name, _ in _regular_files(folder, folder) if name != MANIFEST)
    return {name: listed(folder / name) for name in names}


def is_bundle(path: Path) -> bool:
    """Whether a directory is a bundle, whole or not."""
    return all((path / name).is_file() for name in (MANIFEST, WEIGHTS))


def check_directory(path: Path, manifest: Manifest) -> None:
    """Check that a directory has exactly the files of the manifest, with their sizes."""
    sizes = dict(_regular_files(path, path))
    undeclared = set(sizes) - set(manifest.files) - {MANIFEST}
    if undeclared:
        message = f"The bundle {path} contains files that its manifest does not list."
        raise UndeclaredFile(message, context=f"not listed: {some_of(undeclared)}", hint="remove them from the bundle.")
    for name, entry in manifest.files.items():
        if name not in sizes:
            raise MissingFile(
                f"The bundle {path} lacks the file {name}.", context=f"expected {entry.bytes} bytes.", hint=FETCH_AGAIN
            )
        if sizes[name] != entry.bytes:
            context = f"expected {entry.bytes} bytes, found {sizes[name]}"
            raise DamagedFile(f"The file {name} of the bundle has the wrong size.", context=context, hint=FETCH_AGAIN)


def _regular_files(root: Path, directory: Path) -> Iterator[tuple[str, int]]:
    """Yield names and sizes of all files below ``directory``; links and devices are refused."""
    for entry in os.scandir(directory):
        name = Path(entry.path).relative_to(root).as_posix()
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files(root, Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield name, entry.stat(follow_symlinks=False).st_size
        else:
            kind = "a link" if entry.is_symlink() else "not a regular file"
            hint = "copy the file itself into the bundle (cp -L)."
            raise NotARegularFile(f"The file {name} of the bundle is {kind}.", context=f"in {root}", hint=hint)


class _Part(NamedTuple):
    """A part of a file and its hash; ``start`` is ``None`` for a whole file."""

    name: str
    sha256: str
    start: int | None


def check_hashes(path: Path, manifest: Manifest) -> None:
    """Check the hash of every file, or of all its parts where the manifest lists them."""

    def digest(part: _Part) -> str:
        try:
            return sha256_of(path / part.name) if part.start is None else hash_of_part(path / part.name, part.start)
        except OSError as failure:
            message = f"Cannot read {path / part.name}."
            raise CannotReadFile(message, context=str(failure), hint=FETCH_AGAIN) from failure

    parts = list(_parts(manifest))
    for part, found in zip(parts, in_threads(digest, parts), strict=True):
        if found != part.sha256:
            where = "" if part.start is None else f" of the bytes from {part.start} on"
            raise DamagedFile(
                f"The file {part.name} of the bundle has changed since it was prepared.",
                context=f"expected SHA-256 {part.sha256}{where}, found {found}",
                hint=FETCH_AGAIN,
            )


def _parts(manifest: Manifest) -> Iterator[_Part]:
    for name, entry in manifest.files.items():
        if entry.parts is None:
            yield _Part(name, entry.sha256, None)
        else:
            yield from (_Part(name, sha256, PART * index) for index, sha256 in enumerate(entry.parts))


def some_of(names: Collection[str]) -> str:
    """Return the first of some names for a message."""
    some = sorted(names)[:5]
    return (", ".join(some) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"
