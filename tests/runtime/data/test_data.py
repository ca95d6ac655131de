"""Sources of batches, and refused ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime.bundle.specs import ListedFile, OptimizerSpec, TensorSpec
from edgepeft_runtime.data.datasets import Arrays, read_npz
from edgepeft_runtime.data.sources import Data, Source
from edgepeft_runtime.data.sources import source_of as source_for
from edgepeft_runtime.errors import DataError, EdgepeftError, StateError
from tests.support import tiny_bundle

NUMBER = tiny_bundle.manifest(
    dict.fromkeys((*tiny_bundle.GRAPHS, "weights.bin"), ListedFile("0" * 64, 96)),
    inputs=(TensorSpec("x", "int64", ("batch",)),),
    labels=(),
    optimizer=OptimizerSpec("sgd", 0.1),
)
"""A bundle whose only input is one number per example."""


def source_of(data: Data, batch_size: int, shuffle_seed: int | None = None) -> Source:
    """The source of data for that bundle."""
    return source_for(data, NUMBER, batch_size, shuffle_seed=shuffle_seed)


def numbers(source: Source, epoch: int, skip: int = 0) -> list[Any]:
    """The batches of an epoch as lists."""
    return [batch["x"].tolist() for batch in source.batches(epoch, skip)]


def test_shuffling_depends_on_seed_and_epoch_alone() -> None:
    """Every example comes once in an epoch, in the order of numpy's permutation, the last batch is short."""
    source = source_of({"x": np.arange(10)}, 4, shuffle_seed=5)
    first = numbers(source, 0)
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert [number for batch in first for number in batch] == np.random.default_rng([5, 0]).permutation(10).tolist()
    assert numbers(source, 1) != first
    assert numbers(source, 0) == first
    assert numbers(source, 0, skip=2) == first[2:]
    assert (source.examples, source.count) == (10, 3)


def test_order_is_kept_without_shuffling() -> None:
    """As for evaluation."""
    assert numbers(source_of({"x": np.arange(5)}, 2), 3) == [[0, 1], [2, 3], [4]]


def test_batches_and_functions_are_accepted_as_they_are() -> None:
    """A list is read again in each epoch, a function is called with the epoch, and a generator serves one epoch."""
    batches = [{"x": np.array([i])} for i in range(3)]
    assert numbers(source_of(batches, 9), 1, skip=1) == [[1], [2]]
    assert numbers(source_of(lambda epoch: batches[epoch:], 9), 1) == [[1], [2]]
    generator = source_of(iter(batches), 9)
    assert numbers(generator, 0) == [[0], [1], [2]]
    with pytest.raises(DataError, match="generator"):
        generator.batches(1)
    with pytest.raises(StateError, match="fewer batches"):
        source_of(batches, 9).batches(0, skip=4)


def test_a_data_set_of_ones_own_is_enough() -> None:
    """Length and batch are all that is needed."""

    class Squares:
        def __len__(self) -> int:
            return 5

        def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
            return {"x": rows**2}

    assert numbers(source_of(Squares(), 3), 0) == [[0, 1, 4], [9, 16]]


@pytest.mark.parametrize("arrays", [{}, {"x": np.zeros((0, 4))}, {"x": np.asarray(1.0)}])
def test_nothing_to_train_on_is_refused(arrays: dict[str, np.ndarray]) -> None:
    """No arrays, empty arrays, and a number that is no array."""
    with pytest.raises(DataError, match="data set is empty"):
        Arrays(arrays)


def test_different_lengths_are_refused() -> None:
    """Both lengths are named."""
    with pytest.raises(DataError, match="x: 3, y: 4"):
        Arrays({"x": np.zeros(3), "y": np.zeros(4)})


def test_npz_files(tmp_path: Path) -> None:
    """An .npz is read; pickles, text, a lone array, a cut file and a missing one are refused."""
    np.savez(tmp_path / "good.npz", x=np.arange(6).reshape(3, 2), y=np.arange(3))
    assert read_npz(tmp_path / "good.npz").batch(np.array([2]))["x"].tolist() == [[4, 5]]
    assert numbers(source_of(str(tmp_path / "good.npz"), 2), 0) == [[[0, 1], [2, 3]], [[4, 5]]]
    whole = (tmp_path / "good.npz").read_bytes()
    np.savez(tmp_path / "pickle.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "lone.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("pickle.npz", "lone.npy", "text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(DataError, match="Cannot read the data file"):
            read_npz(tmp_path / name)
    for cut in range(0, len(whole), 40):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(DataError):
            read_npz(tmp_path / "cut.npz")
    for offset in range(0, len(whole), 7):
        (tmp_path / "flipped.npz").write_bytes(whole[:offset] + bytes([whole[offset] ^ 255]) + whole[offset + 1 :])
        try:
            read_npz(tmp_path / "flipped.npz")
        except EdgepeftError:
            continue


def test_what_is_no_data_is_refused() -> None:
    """The hint lists what can be passed."""
    with pytest.raises(DataError, match=r"\.npz"):
        source_of(3, 4)  # type: ignore[arg-type]
