"""A file of arrays by key to which arrays are only added: a cache that survives the process, and may be lost.

Whatever does not check out is treated as absent: a file of another owner is emptied, a record that a crash cut off
is dropped with all that follow it, and a record whose checksum is wrong is not returned.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from edgepeft_runtime.files.durable import writing
from edgepeft_runtime.files.tensorfile import Array

KEY_BYTES = 16
_MAGIC = b"edgepeft rows 1\n"
_OWNER_BYTES = 32
_HEADER = struct.Struct(f"<{KEY_BYTES}sBBxxIQ")  # key, dtype, axes, checksum of sizes and content, bytes of content
_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
_MAX_AXES = 8


class RowStore:
    """Arrays of float16 or float32 by keys of 16 bytes.

    Args:
        path: the file; created if it is missing.
        owner: 32 bytes that say what the arrays depend on. With other ones, the file is emptied.
        limit: largest size of the file in bytes.

    Raises:
        CannotWriteFile: it cannot be created.
    """

    def __init__(self, path: Path, owner: bytes, limit: int) -> None:
        assert len(owner) == _OWNER_BYTES
        self.limit = limit
        self._offsets: dict[bytes, int] = {}
        with writing(path):
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
            self._file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            start = len(_MAGIC) + _OWNER_BYTES
            if self._file.read(start) != _MAGIC + owner:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(_MAGIC + owner)
                size = start
            self._end = self._scan(start, size)
            self._file.truncate(self._end)

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, key: bytes) -> Array | None:
        """Return the array of a key; ``None`` if there is none, or it is damaged."""
        offset = self._offsets.get(key)
        if offset is None:
            return None
        try:
            self._file.seek(offset)
            _, dtype, axes, checksum, count = _HEADER.unpack(self._file.read(_HEADER.size))
            sizes, content = self._file.read(8 * axes), self._file.read(count)
        except OSError:  # the disk has lost it
            sizes, content, count = b"", b"", 1
        if len(content) < count or zlib.crc32(content, zlib.crc32(sizes)) != checksum:
            del self._offsets[key]
            return None
        return np.frombuffer(content, _DTYPES[dtype]).reshape(struct.unpack(f"<{axes}Q", sizes))

    def put(self, key: bytes, array: Array) -> bool:
        """Add an array; return whether there was room for it. A full disk counts as no room."""
        array = np.ascontiguousarray(array)
        sizes, content = struct.pack(f"<{array.ndim}Q", *array.shape), array.tobytes()
        end = self._end + _HEADER.size + len(sizes) + len(content)
        if end > self.limit:
            return False
        checksum = zlib.crc32(content, zlib.crc32(sizes))
        record = _HEADER.pack(key, _DTYPES.index(array.dtype), array.ndim, checksum, len(content)) + sizes + content
        try:
            self._file.seek(self._end)
            written = self._file.write(record)
        except OSError:
            written = 0
        if written != len(record):
            return False  # what was written of it is overwritten, or dropped by the next process
        self._offsets[key], self._end = self._end, end
        return True

    def sync(self) -> None:
        """Flush to the disk what a checkpoint relies on."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self, start: int, size: int) -> int:
        """Find the records; return the end of the last whole one."""
        while start + _HEADER.size <= size:
            self._file.seek(start)
            key, dtype, axes, _, count = _HEADER.unpack(self._file.read(_HEADER.size))
            if dtype >= len(_DTYPES) or axes > _MAX_AXES:
                break
            sizes = self._file.read(8 * axes)
            end = start + _HEADER.size + len(sizes) + count
            if len(sizes) < 8 * axes or end > size:
                break
            if math.prod(struct.unpack(f"<{axes}Q", sizes)) * _DTYPES[dtype].itemsize != count:
                break
            self._offsets[key], start = start, end
        return start
