"""Read and write tensor files: safetensors with an optional digest, checked on reading and written atomically.

The format is https://github.com/huggingface/safetensors#format, with the checks and digest of section 4 of the SPEC.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.errors import (
    BadDeltaIndices,
    BadTensorFileHeader,
    BadTensorFileLayout,
    CannotReadFile,
    NoDigest,
    TensorFileError,
    TruncatedTensorFile,
    UnknownTensorDtype,
    WrongDigest,
)
from edgepeft_runtime.files import index_coding, strict_json
from edgepeft_runtime.files.durable import write_atomically
from edgepeft_runtime.files.regular import open_regular
from edgepeft_runtime.files.schema import Json
from edgepeft_runtime.files.shapes import MAX_AXES, elements
from edgepeft_runtime.names import path_hint
from edgepeft_runtime.shown import quoted

Array = NDArray[Any]

MAX_HEADER = 2**23
"""Largest header in bytes: enough for about 70,000 tensors. Parsed, it takes at most twenty times as much memory."""

DIGEST_LENGTH = 64

# In the order of the official library, which stores the widest dtype first, so that its files and ours are identical.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_CODES = {name: code for code, name in _DTYPES.items()}
_ORDER = {name: rank for rank, name in enumerate(_DTYPES.values())}


@dataclass(frozen=True)
class TensorFile:
    """The contents of a tensor file: tensors by name, in the file's order, and metadata."""

    tensors: dict[str, Array]
    metadata: dict[str, str]


def read_tensors(
    path: str | Path,
    *,
    require_digest: bool = False,
    most: int | None = None,
) -> TensorFile:
    """Read a tensor file and check all of it.

    Args:
        path: the file.
        require_digest: Refuse a file without an embedded digest. One that is present is checked in any case.
        most: refuse a file of more bytes before it is read; ``None`` sets no limit.

    Returns:
        The tensors, arrays of the stored dtype (``bfloat16`` becomes ``float32``, without loss; delta-coded
        indices become ``int32``), and the metadata.
    """
    try:
        content = _content(Path(path), most)
    except (OSError, MemoryError) as failure:
        raise CannotReadFile(
            f"Cannot read the tensor file {path}.",
            context=str(failure) or "it does not fit into memory.",
            hint=path_hint(Path(path), _unreadable(Path(path))),
        ) from failure
    return parse_tensors(content, path, require_digest=require_digest)


def _unreadable(path: Path) -> str:
    """Return the hint for a path that exists and is not a readable file."""
    if not path.is_dir():
        return "check the path and the permissions, and that it is a file of this bundle."
    if (path / "checkpoint.safetensors").exists():
        return "it is the directory of a run: give the update that its training has written (train --update)."
    return f"it is a {'bundle' if (path / 'manifest.json').exists() else 'folder'}: give the path of a file."


def parse_tensors(content: bytes | Array, name: object, *, require_digest: bool = False) -> TensorFile:
    """Parse the content of a tensor file, which errors call ``name``: see ``read_tensors``."""
    raw = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content
    try:
        return _parse(raw, require_digest)
    except TensorFileError as damage:
        raise damage.reworded(f"The tensor file {name} is damaged or of another format.", damage.context) from None


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, str] | None = None,
    *,
    digest: bool = False,
) -> str:
    """Write a tensor file atomically: a reader sees the old file or the new one.

    Returns:
        The SHA-256 of the file, or its embedded digest if there is one.
    """
    chunks, sha256 = tensor_chunks(tensors, metadata, digest=digest)
    write_atomically(path, chunks)
    return sha256


def tensor_chunks(
    tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None, *, digest: bool = False
) -> tuple[list[memoryview], str]:
    """Return the bytes of a tensor file in chunks, without copying tensors, and their SHA-256 or digest."""
    order = sorted(tensors, key=lambda name: (-_ORDER[tensors[name].dtype.name], name))
    arrays = [np.ascontiguousarray(tensors[name]) for name in order]
    header: Json = {}
    if metadata or digest:
        header["__metadata__"] = {**(metadata or {}), **({"digest": "0" * DIGEST_LENGTH} if digest else {})}
    end = 0
    for name, array in zip(order, arrays, strict=True):
        start, end = end, end + array.nbytes
        shape = list(tensors[name].shape)  # not the array's: ascontiguousarray makes a vector of a scalar
        header[name] = {"dtype": _CODES[array.dtype.name], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = [array.reshape(-1).view(np.uint8).data for array in arrays]
    head = len(text).to_bytes(8, "little") + text
    sha256 = _hash([memoryview(head), *body])
    if digest:
        head = head.replace(b'"digest":"' + b"0" * DIGEST_LENGTH, b'"digest":"' + sha256.encode(), 1)
    return [memoryview(head), *body], sha256


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a regular file in lower-case hex; raises ``OSError``."""
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(chunks: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _content(path: Path, most: int | None) -> Array:
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(f"it has {size} bytes; at most {most} are allowed")
        return np.fromfile(file, dtype=np.uint8)


def _parse(raw: Array, require_digest: bool) -> TensorFile:
    if raw.size < 8:
        raise TruncatedTensorFile(f"it has {raw.size} bytes; the length of the header alone takes 8.")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if length > raw.size > 8 and raw[8:9].tobytes() != b"{":
        begins = raw[:16].tobytes().decode("utf-8", "backslashreplace")
        raise BadTensorFileHeader(f"it is no safetensors file: it begins with {quoted(begins)}.")
    if length > MAX_HEADER:
        raise BadTensorFileHeader(f"its header claims {length} bytes; at most {MAX_HEADER} are allowed.")
    if 8 + length > raw.size:
        raise TruncatedTensorFile(f"its header claims {length} bytes; the file has {raw.size}.")
    text = raw[8 : 8 + length].tobytes()
    header = _header(text)
    metadata = _metadata(header.pop("__metadata__", {}))
    _check_digest(raw, text, metadata.get("digest"), require_digest)
    tensors = _tensors(raw[8 + length :], header)
    try:
        return TensorFile(*index_coding.delta_decoded(tensors, metadata))
    except ValueError as failure:
        raise BadDeltaIndices(str(failure)) from None


def _header(text: bytes) -> Json:
    try:
        header = strict_json.loads(text)
    except ValueError as failure:
        raise BadTensorFileHeader(f"its header is not JSON: {failure}") from None
    if not isinstance(header, dict):
        raise BadTensorFileHeader("its header is not a JSON object.")
    return header


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise BadTensorFileHeader("its __metadata__ is not a map of strings.")
    return value


def _check_digest(raw: Array, text: bytes, digest: str | None, required: bool) -> None:
    if digest is None:
        if required:
            raise NoDigest("it has no digest, so it is unknown whether it is complete.")
        return
    position = text.find(digest.encode("ascii", "replace")) if len(digest) == DIGEST_LENGTH else -1
    if position < 0:
        raise WrongDigest(f"its digest is not {DIGEST_LENGTH} hexadecimal digits.")
    start, data = 8 + position, raw.data
    computed = _hash([data[:start], memoryview(b"0" * DIGEST_LENGTH), data[start + DIGEST_LENGTH :]])
    if computed != digest:
        raise WrongDigest(f"its digest is {quoted(digest)}, but that of its content is {computed}.")


def _tensors(data: Array, header: Json) -> dict[str, Array]:
    ranges = sorted(((*_range(name, entry), name) for name, entry in header.items()), key=lambda item: item[:2])
    end = 0
    for start, stop, name in ranges:
        if start != end:
            problem = "overlaps the previous tensor" if start < end else "leaves a gap after the previous tensor"
            raise BadTensorFileLayout(f"tensor {quoted(name)} at byte {start} {problem}, which ends at {end}.")
        end = stop
    if end != data.size:
        raise TruncatedTensorFile(f"its header describes {end} bytes of data; the file has {data.size}.")
    return {name: _tensor(name, header[name], data[start:stop]) for start, stop, name in ranges}


def _range(name: str, entry: object) -> tuple[int, int]:
    """Return the range of a tensor's bytes, checked against its dtype and shape."""
    shown = quoted(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BadTensorFileHeader(f"the entry of tensor {shown} is not dtype, shape and data_offsets.")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if code != "BF16" and (not isinstance(code, str) or code not in _DTYPES):
        known = ", ".join(_DTYPES)
        raise UnknownTensorDtype(f"tensor {shown} has dtype {quoted(code)}; known are {known}, BF16.")
    if not _naturals(shape, MAX_AXES) or not _naturals(offsets, 2) or len(offsets) != 2:
        raise BadTensorFileHeader(f"tensor {shown} has shape {quoted(shape)}, offsets {quoted(offsets)}.")
    start, stop = offsets
    itemsize = 2 if code == "BF16" else np.dtype(_DTYPES[code]).itemsize
    count = elements(shape, max(stop - start, 0) // itemsize)
    if count is None or count * itemsize != stop - start:
        facts = f"dtype {code} and shape {quoted(shape)} does not fill the {stop - start} bytes of its range."
        raise BadTensorFileLayout(f"tensor {shown} of {facts}")
    return start, stop


def _naturals(value: object, most: int) -> bool:
    """Return whether a value is a list of at most ``most`` natural numbers."""
    if not isinstance(value, list) or len(value) > most:
        return False
    return all(type(item) is int and item >= 0 for item in value)


def _tensor(name: str, entry: Json, data: Array) -> Array:
    code = entry["dtype"]
    if code == "BOOL" and data.size and data.max() > 1:
        raise BadTensorFileLayout(f"tensor {quoted(name)} of dtype BOOL contains a byte other than 0 and 1.")
    # Arithmetic needs aligned memory; a file whose header is not padded is copied instead of viewed.
    dtype = np.dtype("uint16" if code == "BF16" else _DTYPES[code])
    array = data.view(dtype) if data.ctypes.data % dtype.itemsize == 0 else data.copy().view(dtype)
    if code == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(entry["shape"])
