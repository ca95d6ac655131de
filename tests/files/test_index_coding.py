"""Delta-coded indices: each round-trips, each has one coding, and other bytes are refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from edgepeft_runtime.errors import BadDeltaIndices, EdgepeftError
from edgepeft_runtime.files import index_coding
from edgepeft_runtime.files.tensorfile import read_tensors, write_tensors
from edgepeft_runtime.train.update import Update, read_update, write_update

LAST = 2**31 - 1
SPARSE = {
    "w.values": np.array([0.5, -1.5, 2.0], np.float32),
    "w.indices": np.array([3, 4, 133], np.int32),
}


def picked(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Ascending positions in a tensor, drawn at random."""
    return np.sort(np.random.default_rng(seed).choice(size, count, replace=False)).astype(np.int32)


def update_of(parameters: dict[str, np.ndarray]) -> Update:
    return Update(parameters, "0" * 64, "1" * 64, {"method": "sift"})


def coded_file(path: Path, data: bytes, names: Any = ("a",), shape: tuple[int, ...] = (-1,)) -> Path:
    """An update whose bytes ``a`` are named as delta-coded; ``names`` as text goes into the metadata unchanged."""
    text = names if isinstance(names, str) else json.dumps(names)
    metadata = read_tensors(write_update(path, update_of({}))).metadata | {"delta_indices": text}
    tensors = {"a": np.frombuffer(data, np.uint8).reshape(shape), "b": np.zeros(2, np.float32)}
    write_tensors(path, tensors, metadata, digest=True)
    return path


@given(st.lists(st.integers(0, LAST), unique=True).map(sorted))
@example([])
@example([0])
@example([LAST])
@example([0, LAST])
@example([LAST - 1, LAST])
@example(list(range(1000)))
@example([2**bits - 1 for bits in range(32)])
@example([2**bits for bits in range(31)])
def test_ascending_indices_round_trip(indices: list[int]) -> None:
    """None, one, all in a row, the last that int32 holds, and every length of a code; never 8 bytes longer."""
    data = index_coding.encode(np.array(indices, np.int32))
    found = index_coding.decode(data)
    assert (found.dtype, found.tolist()) == (np.int32, indices)
    assert len(data) <= 4 * len(indices) + 7


@given(st.binary(max_size=40))
def test_any_bytes_are_one_coding_or_none(data: bytes) -> None:
    """Readable bytes are written identically again, so that one update has one hash."""
    raw = np.frombuffer(data, np.uint8)
    try:
        indices = index_coding.decode(raw)
    except ValueError:
        return
    assert index_coding.encode(indices).tobytes() == data
    assert (indices[:1] >= 0).all() and (np.diff(indices.astype(np.int64)) > 0).all()


@pytest.mark.parametrize("density", [0.001, 0.01, 0.3, 1.0])
def test_indices_of_a_large_tensor_round_trip(density: float) -> None:
    """Of five million elements, at any density: more codes than are read at a time."""
    indices = picked(5_000_000, int(5_000_000 * density))
    assert np.array_equal(index_coding.decode(index_coding.encode(indices)), indices)


def test_the_bytes_are_leb128() -> None:
    """The standard's own examples: 2, 127, 128, 129, 130 and 12857."""
    wanted = [2, 127, 128, 129, 130, 12857]
    indices = np.cumsum(np.array(wanted) + 1) - 1
    assert index_coding.encode(indices.astype(np.int32)).tobytes() == bytes.fromhex("02 7f 8001 8101 8201 b964")


def test_an_update_at_one_per_cent_holds_little_more_than_that(tmp_path: Path) -> None:
    """For a layer of 384 by 1,536: four bytes per value, and about one per index."""
    indices = picked(384 * 1536, 384 * 1536 // 100)
    values = np.random.default_rng(1).normal(size=indices.size).astype(np.float32)
    path = write_update(tmp_path / "u", update_of({"w.values": values, "w.indices": indices}))
    assert 0.0125 < path.stat().st_size / (4 * 384 * 1536) < 0.0140
    found = read_update(path).parameters
    assert np.array_equal(found["w.indices"], indices) and np.array_equal(found["w.values"], values)


def test_what_is_no_picked_indices_is_written_as_it_is(tmp_path: Path) -> None:
    """Not picked yet, out of order, twice the same, of two axes, of another dtype; then no key names coded ones."""
    plain = {
        "unpicked": np.full(3, -1, np.int32),
        "descending": np.array([5, 4], np.int32),
        "wrapping": np.array([LAST, -LAST - 1], np.int32),
        "twice": np.array([4, 4], np.int32),
        "matrix": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.asarray(3, np.int32),
        "long": np.arange(6),
    }
    path = write_update(tmp_path / "u", update_of(plain))
    assert b"delta_indices" not in path.read_bytes()
    for found in (safetensors.numpy.load_file(path), read_update(path).parameters):
        assert {name: array.dtype for name, array in found.items()} == {n: array.dtype for n, array in plain.items()}
        assert all(np.array_equal(found[name], array) for name, array in plain.items())


def test_another_reader_sees_the_bytes_and_their_names(tmp_path: Path) -> None:
    """The file is safetensors: vectors of bytes, and which of them are delta-coded."""
    path = write_update(tmp_path / "u", update_of({**SPARSE, "größe.indices": np.zeros(1, np.int32)}))
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["delta_indices"] == '["größe.indices","w.indices"]'
        assert file.get_tensor("w.indices").tolist() == [3, 0, 0x80, 0x01]
        assert file.get_tensor("größe.indices").tolist() == [0]
    found = read_tensors(path, require_digest=True)
    assert "delta_indices" not in found.metadata and found.tensors["w.indices"].tolist() == [3, 4, 133]
    assert write_update(tmp_path / "again", read_update(path)).read_bytes() == path.read_bytes()


def test_an_update_with_plain_indices_is_read(tmp_path: Path) -> None:
    """As they were written before indices were coded."""
    metadata = read_tensors(write_update(tmp_path / "u", update_of({}))).metadata
    write_tensors(tmp_path / "old", SPARSE, metadata, digest=True)
    assert read_update(tmp_path / "old").parameters["w.indices"].tolist() == [3, 4, 133]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("80", "the last one is cut short"),
        ("05 05 ff ff", "the last one is cut short"),
        ("80 80 80 80 80 01", "longer than 5 bytes"),
        ("ff" * 70_000 + "01", "longer than 5 bytes"),
        ("05 80 00", "more bytes than it needs"),
        ("80 80 80 80 00", "more bytes than it needs"),
        ("80 80 80 80 08", "beyond position 2147483647"),
        ("ff ff ff ff 7f", "beyond position 2147483647"),
        ("ff ff ff ff 07 00", "beyond position 2147483647"),
        ("ff ff ff ff 03" * 3, "beyond position 2147483647"),
        ("ff ff ff ff 7f" * 20_000, "beyond position 2147483647"),
    ],
)
def test_damaged_codes_are_refused(data: str, what: str, tmp_path: Path) -> None:
    """The error names the problem, though the digest is correct."""
    path = coded_file(tmp_path / "u", bytes.fromhex(data))
    with pytest.raises(EdgepeftError) as error:
        read_update(path)
    assert error.value.code == "bad-delta-indices"
    assert what in str(error.value.context) and "'a'" in str(error.value.context)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["missing"], "'missing' is named in delta_indices"),
        (["b"], "'b' is named in delta_indices"),
        (["a", "a"], "'a' is named in delta_indices"),
        ({"a": 2}, "not a list of names"),
        (["a", 2], "not a list of names"),
        ("a", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("NaN", "not JSON"),
    ],
)
def test_names_of_what_is_not_coded_are_refused(names: Any, what: str, tmp_path: Path) -> None:
    """Not in the file, floats, twice, or no list of names."""
    with pytest.raises(BadDeltaIndices) as error:
        read_update(coded_file(tmp_path / "u", b"\x01\x02", names))
    assert error.value.code == "bad-delta-indices"
    assert what in str(error.value.context)


def test_codes_of_two_axes_are_refused(tmp_path: Path) -> None:
    """A vector has one."""
    with pytest.raises(BadDeltaIndices, match="damaged or of another format"):
        read_update(coded_file(tmp_path / "u", b"\x01\x02", shape=(1, 2)))


@pytest.mark.parametrize("code", [b"\x00", b"\x80\x01"])
def test_reading_needs_memory_by_the_bytes(code: bytes) -> None:
    """A few times the bytes of the file, however they are chosen."""
    data = np.frombuffer(code * (4_000_000 // len(code)), np.uint8)
    tracemalloc.start()
    indices = index_coding.decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert indices.size == 4_000_000 // len(code)
    assert peak < 8 * data.size
