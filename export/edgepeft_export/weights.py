"""The frozen tensors of all graphs in one file, each once."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from edgepeft_runtime.bundle.program_checks import ALIGNMENT
from edgepeft_runtime.bundle.specs import FrozenSpec

INLINE = 256
"""Tensors of at most this many bytes stay in the graph."""


class WeightsFile:
    """Collects the large initializers of several models in one file, in order. Equal ones are stored once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._ranges: dict[str, tuple[int, int]] = {}
        self._keys: dict[int, tuple[ir.TensorProtocol, str]] = {}
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
        key = self._written(tensor)
        offset, length = self._ranges[key]
        shape = tuple(tensor.shape.numpy())
        self._list(FrozenSpec(name, _dtype_name(tensor.dtype), shape, length, offset))
        return ir.ExternalTensor(
            self._path.name, offset, length, tensor.dtype, shape=ir.Shape(shape), name=name, base_dir=self._path.parent
        )

    def _list(self, entry: FrozenSpec) -> None:
        listed, number = entry, 2
        while self._entries.setdefault(listed.name, listed).offset != entry.offset:
            listed, number = replace(entry, name=f"{entry.name}.{number}"), number + 1

    def _written(self, tensor: ir.TensorProtocol) -> str:
        """Write a tensor whose bytes are new, and return their hash. One that several graphs share is read once."""
        known = self._keys.get(id(tensor))
        if known is not None:
            return known[1]
        data = _bytes_of(tensor)
        key = hashlib.sha256(data).hexdigest()  # by the bytes alone, as 4-bit weights are bytes to some readers
        if key not in self._ranges:
            self._ranges[key] = (self._pad(), data.nbytes)
            self._file.write(data)
        self._keys[id(tensor)] = (tensor, key)
        return key

    def _pad(self) -> int:
        missing = -self._file.tell() % ALIGNMENT
        self._file.write(bytes(missing))
        return self._file.tell()


def _bytes_of(tensor: ir.TensorProtocol) -> memoryview:
    """A tensor's bytes: its memory where it is contiguous, else a copy."""
    if tensor.dtype.bitwidth % 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


def _is_large(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype == ir.DataType.STRING:
        return False
    # Vectors of integers are shapes, axes and sizes of parts, which the runtime reads while it loads.
    return tensor.nbytes > INLINE and not (len(tensor.shape) <= 1 and not tensor.dtype.is_floating_point())


def _dtype_name(dtype: ir.DataType) -> str:
    """numpy's name, or that of its extension ``ml_dtypes`` (``int4``)."""
    return str(dtype.numpy().name)
