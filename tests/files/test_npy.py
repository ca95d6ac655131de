"""Untrusted archives of arrays: numpy's files are read as by numpy, and all others are refused."""

from __future__ import annotations

import io
import os
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgepeft_runtime.data.datasets import read_npz
from edgepeft_runtime.errors import DataError
from edgepeft_runtime.files import npy

ARRAYS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "scalar": np.asarray(7),
    "empty": np.zeros((0, 5), np.int8),
    "other-order": np.arange(3, dtype=">i8"),
    "flags": np.array([True, False]),
    "texts": np.array(["ä", "bc"]),
    "bytes": np.array([b"a", b"bc"]),
    "complex": np.array([1 + 2j]),
    "nothing": np.array(["", ""]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_reads_them(save: Callable[..., None], tmp_path: Path) -> None:
    """Of every kind and order, to the byte."""
    save(tmp_path / "a.npz", **ARRAYS)
    found = npy.read_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as expected:
        for name in ARRAYS:
            assert found[name].dtype == expected[name].dtype and found[name].shape == expected[name].shape
            assert found[name].tobytes("A") == expected[name].tobytes("A")


def member(array: np.ndarray) -> bytes:
    """An array as ``.npy``."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(*members: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of any members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as written, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in members:
            written.writestr(name, content)
    return file.getvalue()


def header(text: str) -> bytes:
    """An ``.npy`` with any header and no values."""
    content = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


GOOD = member(np.arange(4))
REFUSED = {
    "claims-more": archive(("x.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (9000000000,), }"))),
    "axes": archive(("x.npy", header(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({'1, ' * 33}), }}"))),
    "code": archive(("x.npy", header("{'descr': __import__('os').abort(), 'fortran_order': False, 'shape': ()}"))),
    "objects": archive(("x.npy", header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"))),
    "structured": archive(("x.npy", header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0,), }"))),
    "float-of-6-bytes": archive(("x.npy", header("{'descr': '<f6', 'fortran_order': False, 'shape': (0,), }"))),
    "texts-without-end": archive(
        ("x.npy", header("{'descr': '<U999999999', 'fortran_order': False, 'shape': (0,), }"))
    ),
    "cut-short": archive(("x.npy", GOOD[:-1])),
    "more": archive(("x.npy", GOOD + b"x")),
    "twice": archive(("x.npy", GOOD), ("x.npy", GOOD)),
    "another-suffix": archive(("x.pkl", GOOD)),
    "another-compression": archive(("x.npy", GOOD), kind=zipfile.ZIP_LZMA),
    "version-9": archive(("x.npy", GOOD[:6] + b"\x09" + GOOD[7:])),
}


@pytest.mark.parametrize("name", REFUSED)
def test_archive_that_numpy_does_not_write_is_refused(name: str, tmp_path: Path) -> None:
    """Each with a reason, in a message that does not grow with the file."""
    (tmp_path / "a.npz").write_bytes(REFUSED[name])
    with pytest.raises(DataError) as error:
        read_npz(tmp_path / "a.npz")
    assert error.value.context and len(str(error.value)) < 1000


def test_small_archive_that_unpacks_to_very_much_is_refused(tmp_path: Path) -> None:
    """Before it is decompressed: memory stays far below the size that the archive claims."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(2**27, np.uint8))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="decompresses to more than"):
            read_npz(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in its files")
def test_pipe_in_place_of_an_archive_is_refused(tmp_path: Path) -> None:
    """Nobody ever writes to it."""
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(DataError, match="not a regular file"):
        read_npz(tmp_path / "a.npz")
