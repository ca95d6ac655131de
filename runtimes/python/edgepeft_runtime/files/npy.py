"""Read numpy's ``.npy`` and ``.npz`` files with bounded time and memory, without unpickling.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. ``numpy.load`` allocates the
size that a header claims, evaluates the header as Python, and decompresses an archive of any size.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.files.shapes import MAX_AXES, elements
from edgepeft_runtime.files.unpacking import room
from edgepeft_runtime.shown import quoted

Array = NDArray[Any]

SUFFIX = ".npy"
MAX_HEADER = 2**14

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: "<H", 2: "<I", 3: "<I"}
_PIECE = 2**20
_ZIP_ERRORS = (EOFError, KeyError, NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=]?[biufcSU]\d{1,9})', "
    r"'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9, ]*)\), ?\}\s*"
)


def read_npz(path: str | Path) -> dict[str, Array]:
    """Return the arrays of an archive by name.

    Raises:
        ValueError: it is not an archive, is damaged, contains Python objects, or decompresses to far too many bytes.
        OSError: it cannot be read, or is not a regular file.
    """
    with open(open_regular(path, follow=True), "rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            raise ValueError("it contains a single array without a name (.npy)")
        size = file.seek(0, 2)
        try:
            with zipfile.ZipFile(file) as archive:
                return _arrays(archive, room(size))
        except _ZIP_ERRORS as failure:
            raise ValueError(str(failure) or type(failure).__name__) from failure


def read_npy(file: IO[bytes], size: int) -> Array:
    """Return an array of numbers or texts from a file that has ``size`` bytes.

    Raises:
        ValueError: it is not an array, or its header claims another size.
    """
    dtype, shape, fortran, start = _header(file)
    count = elements(shape, (size - start) // max(dtype.itemsize, 1))
    if count is None or start + count * dtype.itemsize != size:
        raise ValueError(f"its header declares {dtype}, shape {quoted(shape)}, but it has {size - start} bytes")
    array = np.empty(count, dtype)
    view = array.view(np.uint8).data if array.nbytes else memoryview(b"")
    while view:
        piece = file.read(min(len(view), _PIECE))
        if not piece:
            raise ValueError("it ends too early")
        view[: len(piece)] = piece
        view = view[len(piece) :]
    return array.reshape(shape, order="F" if fortran else "C")


def _arrays(archive: zipfile.ZipFile, most: int) -> dict[str, Array]:
    members = archive.infolist()
    if sum(member.file_size for member in members) > most:
        raise ValueError(
            f"it decompresses to more than {most} bytes; write it with numpy.savez, which does not compress"
        )
    arrays: dict[str, Array] = {}
    for member in members:
        name = member.filename.removesuffix(SUFFIX)
        if name in arrays:
            raise ValueError(f"it contains {quoted(name)} twice")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or name == member.filename:
            raise ValueError(f"{quoted(member.filename)} is not an array of numpy")
        with archive.open(member) as file:
            try:
                arrays[name] = read_npy(file, member.file_size)
            except ValueError as failure:
                raise ValueError(f"{quoted(name)}: {failure}") from None
    return arrays


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], bool, int]:
    """Return the dtype, the shape, whether the order is Fortran's, and the offset of the values."""
    start = file.read(len(_MAGIC) + 2)
    if start[: len(_MAGIC)] != _MAGIC or len(start) < 8 or start[6] not in _LENGTHS:
        raise ValueError("it is not an array as numpy writes it")
    kind = struct.Struct(_LENGTHS[start[6]])
    field = file.read(kind.size)
    length = kind.unpack(field)[0] if len(field) == kind.size else 0
    if length > MAX_HEADER:
        raise ValueError(f"its header claims {length} bytes; at most {MAX_HEADER} are allowed")
    text = file.read(length).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is None:
        objects = "'|O'" in text or "'O'" in text
        raise ValueError(
            "it contains Python objects (dtype object)" if objects else f"its header is malformed: {quoted(text)}"
        )
    return _dtype(match["descr"]), _shape(match["shape"]), match["fortran"] == "True", 8 + kind.size + length


def _dtype(text: str) -> np.dtype[Any]:
    try:
        return np.dtype(text)
    except (TypeError, ValueError) as failure:  # such as a float of six bytes; the exception depends on the release
        raise ValueError(f"its header has the dtype {quoted(text)}, which numpy does not know") from failure


def _shape(text: str) -> tuple[int, ...]:
    sizes = [size.strip() for size in text.split(",", MAX_AXES + 1)]
    if sizes[-1] == "":
        sizes.pop()
    if len(sizes) > MAX_AXES or not all(size.isdigit() and len(size) <= 16 for size in sizes):
        raise ValueError(f"its header has the shape {quoted(text)}")
    return tuple(map(int, sizes))
