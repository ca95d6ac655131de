"""The frozen tensors of all graphs in one file, each once."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from edgepeft_runtime.bundle.program_checks import ALIGNMENT
from edgepeft_runtime.bundle.specs import FrozenSpec

INLINE = 256
"""Tensors of at most this many bytes stay in the graph."""

_SAMPLED = 4096
_AT_ONCE = 1 << 20
"""Bytes that are compared at a time."""


class WeightsFile:
    """Collects the large initializers of several models in one file, in order. Equal ones are stored once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w+b")
        self._alike: dict[tuple[int, bytes], list[int]] = {}
        self._known: dict[int, tuple[ir.TensorProtocol, int]] = {}
        self._entries: dict[str, FrozenSpec] = {}

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def entries(self) -> tuple[FrozenSpec, ...]:
        """The tensors of the file. One that several names share appears under each.

        Where graphs have different tensors of one name, the later ones have numbers here.
        """
        return tuple(self._entries.values())

    def externalize(self, model: ir.Model) -> ir.Model:
        """Move the large initializers of ``model`` into the file, in place."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and _is_large(tensor):
                value.const_value = self.store(str(value.name), tensor)
        return model

    def store(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write a tensor, once for all equal ones, and list it under its name."""
        offset, length = self._written(tensor), tensor.nbytes
        shape = tuple(tensor.shape.numpy())
        self._list(FrozenSpec(name, _dtype_name(tensor.dtype), shape, length, offset))
        return ir.ExternalTensor(
            self._path.name, offset, length, tensor.dtype, shape=ir.Shape(shape), name=name, base_dir=self._path.parent
        )

    def _list(self, entry: FrozenSpec) -> None:
        listed, number = entry, 2
        while self._entries.setdefault(listed.name, listed).offset != entry.offset:
            listed, number = replace(entry, name=f"{entry.name}.{number}"), number + 1

    def _written(self, tensor: ir.TensorProtocol) -> int:
        """Write a tensor whose bytes are new, and return their offset. One that several graphs share is read once."""
        known = self._known.get(id(tensor))
        if known is not None:
            return known[1]
        data = _bytes_of(tensor)
        assert data.nbytes == tensor.nbytes
        # By the bytes alone, as 4-bit weights are bytes to some readers.
        alike = self._alike.setdefault((data.nbytes, _sample(data)), [])
        offset = next((offset for offset in alike if self._has(offset, data)), None)
        if offset is None:
            offset = self._pad()
            alike.append(offset)
            self._file.write(data)
        self._known[id(tensor)] = (tensor, offset)
        return offset

    def _has(self, offset: int, data: memoryview) -> bool:
        """Whether the file has these bytes at an offset."""
        end = self._file.tell()
        self._file.seek(offset)
        same = all(self._file.read(len(part)) == bytes(part) for part in _parts(data))
        self._file.seek(end)
        return same

    def _pad(self) -> int:
        missing = -self._file.tell() % ALIGNMENT
        self._file.write(bytes(missing))
        return self._file.tell()


def _bytes_of(tensor: ir.TensorProtocol) -> memoryview:
    """A tensor's bytes: its memory where it is contiguous, else a copy."""
    if tensor.dtype.bitwidth % 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _sample(data: memoryview) -> bytes:
    """A hash of some of the bytes. Most tensors differ there; to hash all of a large model's takes seconds."""
    return hashlib.sha256(bytes(data[:: max(1, len(data) // _SAMPLED)])).digest()


def _parts(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), _AT_ONCE):
        yield data[start : start + _AT_ONCE]


def _is_large(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    # Vectors of integers are shapes, axes and sizes of parts, which the runtime reads while it loads.
    return tensor.nbytes > INLINE and not (len(tensor.shape) <= 1 and not tensor.dtype.is_floating_point())


def _dtype_name(dtype: ir.DataType) -> str:
    """numpy's name, or that of its extension ``ml_dtypes`` (``int4``)."""
    return str(dtype.numpy().name)
