"""Delta-coded indices of tensor files: little more than a byte each at a density of 1 % (section 4 of the SPEC).

Each of the ascending indices is stored as the number of positions between it and the previous one, as unsigned
LEB128 (DWARF 5, section 7.6): seven bits per byte, the lowest first, with the eighth bit set if another byte follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepeft_runtime.files import strict_json
from edgepeft_runtime.shown import quoted

Array = NDArray[Any]

KEY = "delta_indices"
"""The key of a file's metadata whose value is the JSON list of the coded tensors' names."""

_MORE = 0x80
_LONGEST = 5
_LARGEST = int(np.iinfo(np.int32).max)

_BLOCK = 2**16
"""Bytes that are decoded at a time. Memory is constant apart from the indices, at most four times the bytes."""


def delta_coded(
    tensors: Mapping[str, Array], metadata: Mapping[str, str]
) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Return the tensors and metadata of a file in which every ascending vector of indices is delta-coded.

    Such a vector is int32, and strictly ascending from 0 on. Indices that are not picked yet (-1) stay as they are.
    """
    coded: dict[str, Array] = {name: encode(array) for name, array in sorted(tensors.items()) if _ascends(array)}
    if not coded:
        return tensors, metadata
    return {**tensors, **coded}, {**metadata, KEY: json.dumps([*coded], ensure_ascii=False, separators=(",", ":"))}


def delta_decoded(tensors: dict[str, Array], metadata: dict[str, str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the arguments of ``delta_coded``.

    Raises:
        ValueError: The metadata name something that is not delta-coded, or a code is damaged.
    """
    if KEY not in metadata:
        return tensors, metadata
    decoded = dict(tensors)
    for name in _names(metadata[KEY]):
        data = decoded.get(name)
        if data is None or data.dtype != np.uint8 or data.ndim != 1:  # int32 already if a name is listed twice
            raise ValueError(f"{quoted(name)} is named in {KEY} but is not a vector of bytes.")
        try:
            decoded[name] = decode(data)
        except ValueError as damage:
            raise ValueError(f"the indices of {quoted(name)} are damaged: {damage}") from None
    return decoded, {key: text for key, text in metadata.items() if key != KEY}


def encode(indices: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the bytes (uint8) of strictly ascending indices from 0 on; at most 7 more than the indices have."""
    deltas = indices.copy()
    deltas[1:] -= indices[:-1] + 1
    lengths = np.ones(deltas.size, np.int64)
    for bits in range(7, 7 * _LONGEST, 7):
        lengths += deltas >> bits > 0
    starts = np.cumsum(lengths) - lengths
    data = np.empty(lengths.sum(), np.uint8)
    for index in range(_LONGEST):
        reached = np.flatnonzero(lengths > index)
        more = np.where(lengths[reached] > index + 1, _MORE, 0)
        data[starts[reached] + index] = deltas[reached] >> 7 * index & 0x7F | more
    return data


def decode(data: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the indices that ``encode`` encodes as these bytes.

    Raises:
        ValueError: The bytes are not such an encoding.
    """
    if data.size and data[-1] >= _MORE:
        raise ValueError("the last one is cut short.")
    indices = np.empty(np.count_nonzero(data < _MORE), np.int32)
    read, done, last = 0, 0, -1
    while read < data.size:
        deltas, used = _deltas(data[read : read + _BLOCK])
        block = last + np.cumsum(deltas + 1)
        if block[-1] > _LARGEST:
            raise ValueError(f"they lead beyond position {_LARGEST}.")
        indices[done : done + block.size] = block
        read, done, last = read + used, done + block.size, int(block[-1])
    return indices


def _deltas(block: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """Return the deltas that end in a block, and how many bytes they take."""
    ends = np.flatnonzero(block < _MORE)
    lengths = np.diff(ends, prepend=-1)
    if ends.size == 0 or lengths.max() > _LONGEST:
        raise ValueError(f"one is longer than {_LONGEST} bytes.")
    if bool(((block[ends] == 0) & (lengths > 1)).any()):
        raise ValueError("one takes more bytes than it needs.")
    starts, deltas = ends - lengths + 1, np.zeros(ends.size, np.int64)
    for index in range(int(lengths.max())):
        reached = np.flatnonzero(lengths > index)
        deltas[reached] |= (block[starts[reached] + index].astype(np.int64) & 0x7F) << 7 * index
    return deltas, int(ends[-1]) + 1


def _ascends(array: Array) -> bool:
    if array.dtype != np.int32 or array.ndim != 1:
        return False
    return bool((array[:1] >= 0).all() and (array[1:] > array[:-1]).all())


def _names(text: str) -> list[str]:
    try:
        names = strict_json.loads(text)
    except ValueError as failure:
        raise ValueError(f"{KEY} is not JSON: {failure}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{KEY} is not a list of names.")
    return names
