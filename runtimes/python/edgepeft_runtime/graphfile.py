"""Finds the files that an ONNX graph would read, without the onnx package: a walk over the protobuf wire format.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgepeft_runtime.errors import BundleError

# message -> number of a field -> message in that field: every way from a model to a tensor.
_CHILDREN = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE = 1, 2


def external_locations(model: bytes) -> set[str]:
    """The ``location`` of every tensor that a serialised ``ModelProto`` keeps in another file.

    Raises:
        BundleError: the bytes are not a protobuf message.
    """
    try:
        return set(_locations(memoryview(model), "Model"))
    except (IndexError, ValueError, RecursionError) as failure:
        raise BundleError(
            "bad-graph",
            "A graph of the bundle is not an ONNX model.",
            context=str(failure) or type(failure).__name__,
            hint="prepare the bundle again.",
        ) from None


def _locations(data: memoryview, message: str) -> Iterator[str]:
    if message == "Entry":
        entry = dict(_fields(data))
        if bytes(entry.get(_KEY, b"")) == b"location":
            yield bytes(entry.get(_VALUE, b"")).decode()
        return
    for number, content in _fields(data):
        child = _CHILDREN[message].get(number)
        if child is not None:
            yield from _locations(content, child)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every length-delimited field."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            _, place = _varint(data, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        elif kind == 2:
            length, place = _varint(data, place)
            yield tag >> 3, data[place : place + length]
            place += length
        else:
            raise ValueError(f"unknown wire type {kind}")
    if place != len(data):
        raise ValueError("a field ends beyond its message")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
