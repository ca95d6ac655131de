"""The disk after a power cut, as strictly as POSIX allows: unflushed data may be gone.

A file's bytes persist once the file was flushed, its name once the folder was. Each operation leads to two disks:
one that has kept nothing else (``names lost``), and one that has written all names early and no bytes (``bytes lost``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.injector import Operation

NAMES_LOST, BYTES_LOST = "power cut, names lost", "power cut, bytes lost"


@dataclass
class _File:
    now: bytearray
    flushed: bytes = b""


@dataclass
class _Folder:
    now: dict[str, _File | _Folder] = field(default_factory=dict)
    flushed: dict[str, _File | _Folder] = field(default_factory=dict)


class Disk:
    """A folder whose changes are followed operation by operation.

    Args:
        root: as it is before the first operation, all of it flushed.
    """

    def __init__(self, root: Path) -> None:
        self._prefix = f"{root}"
        self._inodes: dict[int, _File | _Folder] = {}
        self._root = self._read(root)

    def apply(self, done: Operation) -> None:
        """Follow one operation."""
        getattr(self, f"_{done.name}")(done)

    def write_to(self, target: Path, kind: str) -> None:
        """Write the files that a power cut now would leave."""
        self._write_folder(self._root, target, kind)

    def _read(self, path: Path) -> _Folder:
        folder = _Folder()
        for inner in path.iterdir():
            node = self._read(inner) if inner.is_dir() else _File(bytearray(content := inner.read_bytes()), content)
            self._inodes[inner.stat().st_ino] = folder.now[inner.name] = node
        folder.flushed = dict(folder.now)
        self._inodes[path.stat().st_ino] = folder
        return folder

    def _write_folder(self, folder: _Folder, target: Path, kind: str) -> None:
        target.mkdir()
        for name, node in (folder.flushed if kind == NAMES_LOST else folder.now).items():
            if isinstance(node, _File):
                (target / name).write_bytes(node.flushed)
            else:
                self._write_folder(node, target / name, kind)

    def _at(self, path: str) -> tuple[_Folder, str]:
        """Return the folder of a name, and the name."""
        *folders, name = path.removeprefix(self._prefix).strip("/").split("/")
        folder = self._root
        for part in folders:
            inner = folder.now[part]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder, name

    def _open(self, done: Operation) -> None:
        folder, name = self._at(done.path)
        node = folder.now.get(name)
        if node is None:
            node = folder.now[name] = _File(bytearray())
        assert isinstance(node, _File)
        self._inodes[done.inode] = node
        if done.emptied:
            node.now.clear()

    def _write(self, done: Operation) -> None:
        content = self._inodes[done.inode].now
        assert isinstance(content, bytearray)
        content.extend(bytes(max(0, done.offset - len(content))))
        content[done.offset : done.offset + done.size] = done.data

    def _truncate(self, done: Operation) -> None:
        content = self._inodes[done.inode].now
        assert isinstance(content, bytearray)
        del content[done.size :]
        content.extend(bytes(done.size - len(content)))

    def _sync(self, done: Operation) -> None:
        node = self._inodes.get(done.inode)
        if isinstance(node, _File):
            node.flushed = bytes(node.now)
        elif node is not None:
            node.flushed = dict(node.now)

    def _rename(self, done: Operation) -> None:
        (source, name), (target, new) = self._at(done.path), self._at(done.target)
        target.now[new] = source.now.pop(name)

    def _exchange(self, done: Operation) -> None:
        (source, name), (target, new) = self._at(done.path), self._at(done.target)
        source.now[name], target.now[new] = target.now[new], source.now[name]

    def _link(self, done: Operation) -> None:
        (source, name), (target, new) = self._at(done.path), self._at(done.target)
        target.now[new] = source.now[name]

    def _unlink(self, done: Operation) -> None:
        folder, name = self._at(done.path)
        del folder.now[name]

    _rmdir = _unlink

    def _mkdir(self, done: Operation) -> None:
        folder, name = self._at(done.path)
        self._inodes[done.inode] = folder.now[name] = _Folder()
