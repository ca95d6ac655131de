"""Reads and writes the checkpoint file of ONNX Runtime Training 1.19, without its wheel.

The file is a flatbuffer of the schema that ONNX Runtime publishes (``ort_training_checkpoint.fbs``, ``ort.fbs``;
version 2). It contains trainable and frozen parameters, their optimizer state, and properties. The package
``flatbuffers`` comes with every wheel of onnxruntime.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import flatbuffers
import numpy as np
from flatbuffers import encode, packer
from flatbuffers import number_types as types

from edgepeft_runtime.errors import CannotReadFile, DamagedCheckpoint, NotACheckpoint
from edgepeft_runtime.files.regular import open_regular, read_regular
from edgepeft_runtime.files.shapes import MAX_AXES, elements
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.shown import quoted

IDENTIFIER = b"ODTC"
VERSION = 2
MAX_BYTES = 2**31 - 1
"""Offsets in a flatbuffer are 32-bit."""

MOMENTS = ("momentum0", "momentum1")
_GROUP = "group0"
_DTYPES = {1: "float32", 6: "int32", 7: "int64", 11: "float64"}
_CODES = {name: code for code, name in _DTYPES.items()}

# Indices of fields in their tables, as the schema counts them.
_CHECKPOINT = {"version": 0, "module": 1, "optimizers": 2, "properties": 3}
_MODULE = {"trained": 0, "frozen": 1, "nominal": 2}
_TENSOR = {"name": 0, "dims": 2, "dtype": 3, "data": 4}
_OPTIMIZER = {"name": 0, "step": 1, "rate": 2, "states": 3}
_STATE = {"parameter": 0, "moments": 1}
_STRINGS = 2


@dataclass(frozen=True)
class OrtCheckpoint:
    """The contents of a checkpoint.

    Attributes:
        parameters: trainable parameters by name.
        properties: strings by name, as the application set them.
        nominal: whether there are only names, dtypes and shapes, and values are loaded from elsewhere.
        steps: optimizer steps taken; ``None`` if the optimizer's state was not saved.
        moments: ``momentum0`` and ``momentum1`` of each parameter; empty if the optimizer's state was not saved.
    """

    parameters: Mapping[str, Array]
    properties: Mapping[str, str] = field(default_factory=dict)
    nominal: bool = False
    steps: int | None = None
    moments: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file has the identifier of a checkpoint."""
    with os.fdopen(open_regular(path, follow=True), "rb") as file:
        return file.read(8)[4:] == IDENTIFIER


def write_checkpoint(path: str | Path, checkpoint: OrtCheckpoint) -> Path:
    """Write a checkpoint of float32 parameters, without optimizer state, and return its path."""
    builder = flatbuffers.Builder(1024)
    arrays = sorted(checkpoint.parameters.items())  # the runtime sorts them too
    trained = _vector(builder, [_tensor(builder, name, array, checkpoint.nominal) for name, array in arrays])
    frozen = _vector(builder, [])
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(_MODULE["trained"], trained, 0)
    builder.PrependUOffsetTRelativeSlot(_MODULE["frozen"], frozen, 0)
    builder.PrependBoolSlot(_MODULE["nominal"], checkpoint.nominal, False)
    module = builder.EndObject()
    properties = _properties(builder, checkpoint.properties)
    builder.StartObject(4)
    builder.PrependInt32Slot(_CHECKPOINT["version"], VERSION, 0)
    builder.PrependUOffsetTRelativeSlot(_CHECKPOINT["module"], module, 0)
    builder.PrependUOffsetTRelativeSlot(_CHECKPOINT["properties"], properties, 0)
    builder.Finish(builder.EndObject(), file_identifier=IDENTIFIER)
    Path(path).write_bytes(builder.Output())
    return Path(path)


def _tensor(builder: flatbuffers.Builder, name: str, array: Array, nominal: bool) -> int:
    content = np.zeros(0, np.uint8) if nominal else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    text = builder.CreateString(name)
    dims = builder.CreateNumpyVector(np.array([0] if nominal else array.shape, np.int64))
    data = builder.CreateNumpyVector(content)
    builder.StartObject(6)
    builder.PrependUOffsetTRelativeSlot(_TENSOR["name"], text, 0)
    builder.PrependUOffsetTRelativeSlot(_TENSOR["dims"], dims, 0)
    builder.PrependInt32Slot(_TENSOR["dtype"], _CODES[array.dtype.name], 0)
    builder.PrependUOffsetTRelativeSlot(_TENSOR["data"], data, 0)
    return int(builder.EndObject())


def _properties(builder: flatbuffers.Builder, properties: Mapping[str, str]) -> int:
    entries = []
    for pair in sorted(properties.items()):
        texts = [builder.CreateString(text) for text in pair]
        builder.StartObject(2)
        for slot, text in enumerate(texts):
            builder.PrependUOffsetTRelativeSlot(slot, text, 0)
        entries.append(int(builder.EndObject()))
    strings = _vector(builder, entries)
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(_STRINGS, strings, 0)
    return int(builder.EndObject())


def _vector(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def read_checkpoint(path: str | Path) -> OrtCheckpoint:
    """Read a checkpoint.

    Raises:
        UpdateError: it is damaged, or not a checkpoint.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as failure:
        raise CannotReadFile(f"Cannot read {path}.", context=str(failure), hint="check the path.") from failure
    if content[4:8] != IDENTIFIER:
        raise NotACheckpoint(path, f"it does not have the identifier {IDENTIFIER.decode()}")
    try:
        return _parse(content)
    except (struct.error, IndexError, ValueError, TypeError, UnicodeDecodeError, OverflowError) as failure:
        raise DamagedCheckpoint(path, f"{type(failure).__name__}: {failure}") from failure


def _parse(content: bytes) -> OrtCheckpoint:
    root = _Table(_Reading(content), encode.Get(packer.uoffset, content, 0))
    version = root.number(_CHECKPOINT["version"], types.Int32Flags)
    if version != VERSION:
        raise ValueError(f"version {version}; this runtime knows {VERSION}")
    module = root.table(_CHECKPOINT["module"])
    if module is None:
        raise ValueError("it contains no parameters")
    nominal = bool(module.number(_MODULE["nominal"], types.BoolFlags))
    parameters = dict(_array(part, nominal) for part in module.tables(_MODULE["trained"]))
    bag = root.table(_CHECKPOINT["properties"])
    strings = () if bag is None else bag.tables(_STRINGS)
    properties = {entry.text(0): entry.text(1) for entry in strings}
    group = next((g for g in root.tables(_CHECKPOINT["optimizers"]) if g.text(_OPTIMIZER["name"]) == _GROUP), None)
    if group is None:
        return OrtCheckpoint(parameters, properties, nominal)
    states = {state.text(_STATE["parameter"]): state for state in group.tables(_OPTIMIZER["states"])}
    moments = {name: dict(_array(part, False) for part in s.tables(_STATE["moments"])) for name, s in states.items()}
    return OrtCheckpoint(parameters, properties, nominal, group.number(_OPTIMIZER["step"], types.Int64Flags), moments)


def _array(tensor: _Table, nominal: bool) -> tuple[str, Array]:
    name, code = tensor.text(_TENSOR["name"]), tensor.number(_TENSOR["dtype"], types.Int32Flags)
    if code not in _DTYPES:
        raise ValueError(f"tensor {quoted(name)} has an unknown dtype ({code})")
    shape, data = tensor.array(_TENSOR["dims"], "<i8"), tensor.array(_TENSOR["data"], "u1")
    sizes, dtype = [int(size) for size in shape[: MAX_AXES + 1]], np.dtype(_DTYPES[code])
    count = elements(sizes, data.size // dtype.itemsize) if min(sizes, default=0) >= 0 else None
    if nominal:
        return name, np.zeros(0, dtype)
    if count is None or data.size != count * dtype.itemsize:
        raise ValueError(f"tensor {quoted(name)} of shape {quoted(sizes)} has {data.size} bytes")
    return name, np.frombuffer(data.tobytes(), dtype).reshape(sizes).copy()


class _Reading:
    """A flatbuffer, and how many bytes of it may still be read: offsets can lead to the same part many times."""

    def __init__(self, content: bytes) -> None:
        self.content, self._left = content, 2 * len(content)

    def take(self, offset: int, size: int) -> int:
        """Return the offset, if ``size`` bytes from there are in the file and were not read many times before."""
        self._left -= size
        if self._left < 0:
            raise ValueError("its parts overlap")
        return _inside(self.content, offset, size)


class _Table:
    """A table of a flatbuffer. Every offset is checked, because the file may come from a device."""

    def __init__(self, reading: _Reading, offset: int) -> None:
        self._reading, self._content = reading, reading.content
        self._offset = reading.take(offset, 4)
        self._fields = _inside(self._content, offset - encode.Get(packer.soffset, self._content, offset), 4)

    def _at(self, slot: int) -> int | None:
        """Return the offset of a field; ``None`` if it was left out."""
        entry = 4 + 2 * slot
        if entry + 2 > encode.Get(packer.voffset, self._content, self._fields):
            return None
        relative = encode.Get(packer.voffset, self._content, self._fields + entry)
        return _inside(self._content, self._offset + relative, 1) if relative else None

    def number(self, slot: int, kind: type) -> int:
        at = self._at(slot)
        return 0 if at is None else int(encode.Get(kind.packer_type, self._content, at))  # type: ignore[attr-defined]  # untyped library

    def _follow(self, slot: int) -> int | None:
        at = self._at(slot)
        return None if at is None else _inside(self._content, at + encode.Get(packer.uoffset, self._content, at), 4)

    def table(self, slot: int) -> _Table | None:
        offset = self._follow(slot)
        return None if offset is None else _Table(self._reading, offset)

    def tables(self, slot: int) -> Iterator[_Table]:
        start = self._follow(slot)
        count = 0 if start is None else encode.Get(packer.uoffset, self._content, start)
        for index in range(count):
            at = self._reading.take(int(start or 0) + 4 + 4 * index, 4)
            yield _Table(self._reading, at + encode.Get(packer.uoffset, self._content, at))

    def array(self, slot: int, dtype: str) -> Array:
        start = self._follow(slot)
        if start is None:
            return np.zeros(0, dtype)
        count = encode.Get(packer.uoffset, self._content, start)
        self._reading.take(start + 4, count * np.dtype(dtype).itemsize)
        return np.frombuffer(self._content, dtype, count, start + 4)

    def text(self, slot: int) -> str:
        return self.array(slot, "u1").tobytes().decode()


def _inside(content: bytes, offset: int, size: int) -> int:
    if not 0 <= offset <= len(content) - size:
        raise IndexError(f"an offset leads to byte {offset} of {len(content)}")
    return offset
