"""Places in a tensor file, coded by their gaps: little more than a byte each at 1 % (section 4 of the SPEC).

For each of the ascending positions the file holds how many positions lie between it and the one before, as unsigned
LEB128 (DWARF 5, section 7.6): seven bits in a byte, the lowest first, the eighth set where another byte follows.
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

KEY = "gaps"
"""Under it the metadata of a file name the tensors that are coded: a JSON list."""

_MORE = 0x80
_LONGEST = 5
_LARGEST = int(np.iinfo(np.int32).max)

_BLOCK = 2**16
"""Bytes that are decoded at a time: beside the places, four times the bytes at most, no memory grows with them."""


def packed(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> tuple[Mapping[str, Array], Mapping[str, str]]:
    """Tensors and metadata of a file in which all that can be coded is; without such a tensor they stay as they are.

    What can be is an int32 vector of strictly ascending values from 0 on. Places that are not picked yet are not.
    """
    coded: dict[str, Array] = {name: encode(array) for name, array in sorted(tensors.items()) if _ascends(array)}
    if not coded:
        return tensors, metadata
    return {**tensors, **coded}, {**metadata, KEY: json.dumps([*coded], ensure_ascii=False, separators=(",", ":"))}


def unpacked(tensors: dict[str, Array], metadata: dict[str, str]) -> tuple[dict[str, Array], dict[str, str]]:
    """What :func:`packed` was given.

    Raises:
        ValueError: the metadata name something that is not coded so, or a code is damaged.
    """
    if KEY not in metadata:
        return tensors, metadata
    found = dict(tensors)
    for name in _names(metadata[KEY]):
        data = found.get(name)
        if data is None or data.dtype != np.uint8 or data.ndim != 1:  # a name twice finds int32
            raise ValueError(f"{quoted(name)} is named in {KEY}, and is no vector of bytes.")
        try:
            found[name] = decode(data)
        except ValueError as damage:
            raise ValueError(f"the gaps of {quoted(name)} are damaged: {damage}") from None
    return found, {key: text for key, text in metadata.items() if key != KEY}


def encode(places: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The bytes of strictly ascending positions from 0 on; at most 7 more than the positions take themselves."""
    gaps = places.copy()
    gaps[1:] -= places[:-1] + 1
    lengths = np.ones(gaps.size, np.int64)
    for bits in range(7, 7 * _LONGEST, 7):
        lengths += gaps >> bits > 0
    starts = np.cumsum(lengths) - lengths
    data = np.empty(lengths.sum(), np.uint8)
    for index in range(_LONGEST):
        reached = np.flatnonzero(lengths > index)
        more = np.where(lengths[reached] > index + 1, _MORE, 0)
        data[starts[reached] + index] = gaps[reached] >> 7 * index & 0x7F | more
    return data


def decode(data: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The positions whose :func:`encode` gives these bytes.

    Raises:
        ValueError: there are none.
    """
    if data.size and data[-1] >= _MORE:
        raise ValueError("the last one is cut short.")
    places = np.empty(np.count_nonzero(data < _MORE), np.int32)
    read, done, last = 0, 0, -1
    while read < data.size:
        gaps, used = _gaps(data[read : read + _BLOCK])
        found = last + np.cumsum(gaps + 1)
        if found[-1] > _LARGEST:
            raise ValueError(f"they lead beyond position {_LARGEST}.")
        places[done : done + found.size] = found
        read, done, last = read + used, done + found.size, int(found[-1])
    return places


def _gaps(block: NDArray[np.uint8]) -> tuple[NDArray[np.int64], int]:
    """The gaps that end in a block, and the bytes that they take."""
    ends = np.flatnonzero(block < _MORE)
    lengths = np.diff(ends, prepend=-1)
    if ends.size == 0 or lengths.max() > _LONGEST:
        raise ValueError(f"one is longer than {_LONGEST} bytes.")
    if bool(((block[ends] == 0) & (lengths > 1)).any()):
        raise ValueError("one takes more bytes than it needs.")
    starts, gaps = ends - lengths + 1, np.zeros(ends.size, np.int64)
    for index in range(int(lengths.max())):
        reached = np.flatnonzero(lengths > index)
        gaps[reached] |= (block[starts[reached] + index].astype(np.int64) & 0x7F) << 7 * index
    return gaps, int(ends[-1]) + 1


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
        raise ValueError(f"{KEY} is no list of names.")
    return names
