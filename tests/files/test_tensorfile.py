"""Tensor files: interoperable with the official library, and refused when anything is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from edgepeft_runtime.errors import EdgepeftError, TensorFileError
from edgepeft_runtime.files.shapes import MAX_AXES, elements
from edgepeft_runtime.files.tensorfile import read_tensors, sha256_of, write_tensors
from tests.support.damage import mutated

DTYPES = (
    "float32",
    "float16",
    "float64",
    "int64",
    "int32",
    "int8",
    "uint8",
    "bool",
    "int16",
    "uint16",
    "uint32",
    "uint64",
)


def some_tensors() -> dict[str, np.ndarray]:
    """One tensor of each dtype, a scalar, an empty one, a transposed one, and a name that is not ASCII."""
    rng = np.random.default_rng(0)
    tensors = {dtype: rng.integers(0, 2, size=(3, 5)).astype(dtype) for dtype in DTYPES}
    special = np.array([np.nan, np.inf, -0.0, 1e-45], np.float32)
    scalar, empty = np.asarray(2.5), np.zeros((0, 4), np.float32)
    return {**tensors, "größe": special, "scalar": scalar, "empty": empty, "turned": np.arange(6.0).reshape(2, 3).T}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Equal names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def raw_file(header: Any, data: bytes = b"") -> bytes:
    """A tensor file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_official_library_reads_what_we_write(tmp_path: Path) -> None:
    """The official library reads the same bits from our file."""
    tensors = some_tensors()
    write_tensors(tmp_path / "a", tensors, {"note": "größer"}, digest=True)
    assert_same(
        safetensors.numpy.load_file(tmp_path / "a"),
        {k: np.ascontiguousarray(v).reshape(v.shape) for k, v in tensors.items()},
    )


def test_we_read_what_the_official_library_writes(tmp_path: Path) -> None:
    """We read the same bits from a file of the official library."""
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in some_tensors().items()}
    safetensors.numpy.save_file(tensors, tmp_path / "a", {"note": "größer"})
    read = read_tensors(tmp_path / "a")
    assert_same(read.tensors, tensors)
    assert read.metadata == {"note": "größer"}


def test_files_equal_the_official_ones_byte_for_byte(tmp_path: Path) -> None:
    """The hash of an adapter does not depend on which library wrote it."""
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in some_tensors().items()}
    digest = write_tensors(tmp_path / "ours", tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "theirs")
    assert digest == sha256_of(tmp_path / "ours") == sha256_of(tmp_path / "theirs")


def test_bfloat16_is_widened_without_loss(tmp_path: Path) -> None:
    """numpy has no bfloat16, so its values come as float32."""
    tensor = torch.tensor([1.0, -2.5, 3.0e38, float("inf")], dtype=torch.bfloat16)
    safetensors.torch.save_file({"a": tensor}, tmp_path / "a")
    np.testing.assert_array_equal(read_tensors(tmp_path / "a").tensors["a"], tensor.float().numpy())


def test_arrays_are_aligned_also_where_the_file_is_not(tmp_path: Path) -> None:
    """A header that another writer did not pad must not lead to unaligned arithmetic."""
    data = np.arange(3, dtype=np.float64)
    entry = {"dtype": "F64", "shape": [3], "data_offsets": [0, 24]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a").write_bytes(raw_file(header + b" " * ((-len(header) % 8) + 3), data.tobytes()))
    read = read_tensors(tmp_path / "a").tensors["a"]
    assert read.flags.aligned
    np.testing.assert_array_equal(read, data)


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DAMAGED = {
    "empty": b"",
    "shorter-than-the-length": b"\x01\x00",
    "header-beyond-the-file": (1000).to_bytes(8, "little") + b"{}",
    "header-too-large": (100_000_001).to_bytes(8, "little") + b"{}",
    "not-json": raw_file(b"{nonsense}"),
    "not-utf8": raw_file(b'{"\xff": 1}'),
    "not-an-object": raw_file([1]),
    "nan-in-json": raw_file(b'{"a": NaN}'),
    "deep-json": raw_file(b'{"a":' + b"[" * 100_000),
    "huge-number": raw_file(b'{"a":' + b"9" * 10_000 + b"}"),
    "duplicate": raw_file(f'{{"a":{json.dumps(F32)},"a":{json.dumps(F32)}}}'.encode(), b"\0" * 8),
    "metadata-not-text": raw_file({"__metadata__": {"a": 1}}),
    "metadata-not-a-map": raw_file({"__metadata__": "a"}),
    "entry-not-an-object": raw_file({"a": 1}),
    "entry-without-dtype": raw_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    "entry-with-more": raw_file({"a": {**F32, "more": 1}}, b"\0" * 8),
    "unknown-dtype": raw_file({"a": {**F32, "dtype": "F8_E4M3"}}, b"\0" * 8),
    "dtype-not-text": raw_file({"a": {**F32, "dtype": ["F32"]}}, b"\0" * 8),
    "negative-size": raw_file({"a": {**F32, "shape": [-2]}}, b"\0" * 8),
    "true-as-size": raw_file({"a": {**F32, "shape": [True, 2]}}, b"\0" * 8),
    "float-as-size": raw_file({"a": {**F32, "shape": [2.0]}}, b"\0" * 8),
    "three-offsets": raw_file({"a": {**F32, "data_offsets": [0, 4, 8]}}, b"\0" * 8),
    "offsets-backwards": raw_file({"a": {**F32, "data_offsets": [8, 0]}}, b"\0" * 8),
    "range-too-small": raw_file({"a": {**F32, "data_offsets": [0, 4]}}, b"\0" * 4),
    "overlap": raw_file({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
    "hole": raw_file({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, b"\0" * 20),
    "begins-late": raw_file({"a": {**F32, "data_offsets": [4, 12]}}, b"\0" * 12),
    "data-missing": raw_file({"a": F32}, b"\0" * 7),
    "data-left-over": raw_file({"a": F32}, b"\0" * 9),
    "no-room-for-shape": raw_file({"a": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}}),
    "too-many-axes": raw_file({"a": {"dtype": "U8", "shape": [1] * 100, "data_offsets": [0, 1]}}, b"\0"),
    "exact-sizes-too-large": raw_file({"a": {"dtype": "F32", "shape": [0, 2**52, 2**52], "data_offsets": [0, 0]}}),
    "half-a-pair": raw_file(b'{"\\ud800":' + json.dumps(F32).encode() + b"}", b"\0" * 8),
    "bool-of-two": raw_file({"a": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"),
    "short-digest": raw_file({"__metadata__": {"digest": "00"}}),
    "false-digest": raw_file({"__metadata__": {"digest": "0" * 64}}),
}


class Counted(int):
    """An integer that counts how often it is multiplied."""

    multiplied = 0

    def __rmul__(self, other: int) -> int:
        Counted.multiplied += 1
        return other * int(self)


@pytest.mark.parametrize("shape", [[9] * 100_000, [2**50] * 32, [2**50] * 31 + [0], [1] * 32])
def test_product_of_sizes_is_checked_as_it_grows(shape: list[int]) -> None:
    """No more sizes are multiplied than a tensor has axes, and no product gets longer than a size and the limit."""
    Counted.multiplied = 0
    found = elements([Counted(size) for size in shape], most=1000)
    assert Counted.multiplied <= MAX_AXES
    assert found == (1 if shape == [1] * 32 else None)


def work(call: Callable[[], object]) -> int:
    """Lines and calls that Python runs for a call, in any function."""
    count = 0

    def trace(*_: object) -> object:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with suppress(EdgepeftError):
            call()
    finally:
        sys.settrace(before)
    return count


HEADERS: dict[str, Callable[[int], bytes]] = {
    "axes": lambda n: raw_file({"x": {"dtype": "F32", "shape": [9] * n, "data_offsets": [0, 0]}}),
    "offsets": lambda n: raw_file({"x": {"dtype": "F32", "shape": [], "data_offsets": [9] * n}}),
    "digits": lambda n: raw_file(b'{"x": ' + b"9" * n + b"}"),
    "tensors": lambda n: raw_file({f"x{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(n)}),
    "names-twice": lambda n: raw_file(b"{" + b",".join(b'"%d":1' % i for i in (*range(n), n - 1)) + b"}"),
    "brackets": lambda n: raw_file(b'{"x":' + b"[" * n),
}


@pytest.mark.parametrize("name", HEADERS)
def test_work_grows_no_faster_than_the_header(name: str, tmp_path: Path) -> None:
    """Ten times the header takes at most ten times the lines of Python, and a message of some lines."""
    counts, path = [], tmp_path / "x"
    for size in (100, 1000):
        path.write_bytes(HEADERS[name](size))
        counts.append(work(lambda: read_tensors(path)))
    assert counts[1] <= 11 * counts[0]
    if name != "tensors":
        with pytest.raises(EdgepeftError) as error:
            read_tensors(path)
        assert len(str(error.value)) < 1000


def test_file_larger_than_its_reader_accepts_is_refused(tmp_path: Path) -> None:
    """By its size on the disk, before it is read: this one has 8 GB of zeros."""
    write_tensors(tmp_path / "a", {"a": np.zeros(2, np.float32)})
    os.truncate(tmp_path / "a", 2**33)
    with pytest.raises(EdgepeftError, match="at most 1000"):
        read_tensors(tmp_path / "a", most=1000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its files")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """Nobody ever writes to it."""
    os.mkfifo(tmp_path / "a")
    with pytest.raises(EdgepeftError, match="not a regular file"):
        read_tensors(tmp_path / "a")


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name: str, tmp_path: Path) -> None:
    """Every violation of the format is an error that names the file and the problem."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(TensorFileError) as error:
        read_tensors(path)
    assert str(path) in error.value.message
    assert error.value.context
    assert error.value.hint


def test_missing_file_and_directory_are_refused(tmp_path: Path) -> None:
    """A path that cannot be read is a user's error, not a traceback."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(EdgepeftError, match="Cannot read"):
            read_tensors(path)


def test_file_without_digest_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    """An adapter may come without a digest, an update may not."""
    write_tensors(tmp_path / "a", {"a": np.zeros(2, np.float32)})
    with pytest.raises(EdgepeftError) as error:
        read_tensors(tmp_path / "a", require_digest=True)
    assert error.value.code == "no-digest"


def test_digest_is_the_hash_the_spec_describes(tmp_path: Path) -> None:
    """The hash of the file with the digest's characters replaced by zeros, for any other metadata."""
    metadata = {"trap": f'"digest":"{"0" * 64}"', "later": "0" * 64}
    digest = write_tensors(tmp_path / "a", {"digest": np.ones(3, np.float32)}, metadata, digest=True)
    content = (tmp_path / "a").read_bytes()
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest
    assert read_tensors(tmp_path / "a", require_digest=True).metadata == {**metadata, "digest": digest}


@pytest.mark.parametrize("digest", [True, False])
def test_random_damage_never_goes_unseen_or_escapes(digest: bool, tmp_path: Path) -> None:
    """Reading a mutated file returns its content (without a digest: or another) or raises an EdgepeftError."""
    path, rng = tmp_path / "a", np.random.default_rng(1)
    tensors = {"weight": rng.normal(size=(3, 2)).astype(np.float32), "flags": np.array([True, False])}
    write_tensors(path, tensors, {"provenance": '{"rank": 8}'}, digest=digest)
    whole, expected = path.read_bytes(), read_tensors(path)
    for _ in range(600):
        path.write_bytes(mutated(whole, rng))
        try:
            found = read_tensors(path, require_digest=digest)
        except EdgepeftError:
            continue
        if digest:
            assert found.metadata == expected.metadata
            assert_same(found.tensors, expected.tensors)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Where the new file cannot be written, the old one stays and nothing is left lying about."""
    target = tmp_path / "a"
    target.mkdir()
    (target / "inside").write_text("x")
    with pytest.raises(EdgepeftError, match="Cannot write"):
        write_tensors(target, {"a": np.zeros(1, np.float32)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    with pytest.raises(EdgepeftError, match="Cannot write"):
        write_tensors(tmp_path / "none" / "a", {"a": np.zeros(1, np.float32)})
