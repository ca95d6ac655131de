"""A batch is checked before any graph runs, and the error has a hint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import TensorSpec
from edgepeft_runtime.data.batch import checked_batch
from edgepeft_runtime.errors import BatchError, EdgepeftError
from tests.support.tiny_bundle import examples

GOOD = examples(4)
X, Y = GOOD["x"], GOOD["labels"]


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    """The tiny bundle's manifest."""
    return Manifest.from_json((bundle / "manifest.json").read_bytes())


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    """A copy with one value changed."""
    array = array.copy()
    array[index] = value
    return array


BAD: dict[str, tuple[Any, str]] = {
    "missing-label": ({"x": X}, "missing-input"),
    "missing-input": ({"labels": Y}, "missing-input"),
    "unknown": ({**GOOD, "mask": X}, "unknown-input"),
    "not-a-map": (7, "not-a-batch"),
    "too-few-values": ((X,), "not-a-batch"),
    "too-many-values": ((X, Y, Y), "not-a-batch"),
    "texts": ((["a"] * 4, ["b"] * 4), "wrong-dtype"),
    "pairs-of-texts": (["a", "b", "c"], "text-in-batch"),
    "ints-for-floats": ({"x": X.astype(np.uint8), "labels": Y}, "wrong-dtype"),
    "floats-for-ints": ({"x": X, "labels": Y.astype(np.float32)}, "wrong-dtype"),
    "text": ({"x": np.array([["a"] * 4] * 4), "labels": Y}, "wrong-dtype"),
    "objects": ({"x": [[None] * 4] * 4, "labels": Y}, "wrong-dtype"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]], "labels": Y}, "wrong-dtype"),
    "too-large-for-int64": ({"x": X, "labels": np.full(4, 2**63, np.uint64)}, "wrong-dtype"),
    "rank": ({"x": X[0], "labels": Y}, "wrong-shape"),
    "static-dimension": ({"x": X[:, :3], "labels": Y}, "wrong-shape"),
    "unequal-batch": ({"x": X, "labels": Y[:3]}, "wrong-shape"),
    "above-the-maximum": ({"x": np.zeros((65, 4), np.float32), "labels": np.zeros(65, np.int64)}, "wrong-shape"),
    "empty": ({"x": X[:0], "labels": Y[:0]}, "empty-batch"),
    "nan": ({"x": changed(X, (2, 1), np.nan), "labels": Y}, "not-finite"),
    "infinity": ({"x": changed(X, (2, 1), -np.inf), "labels": Y}, "not-finite"),
    "overflow": ({"x": changed(X.astype(np.float64), (2, 1), 1e300), "labels": Y}, "not-finite"),
    "label-too-large": ({"x": X, "labels": changed(Y, 3, 3)}, "label-out-of-range"),
    "label-negative": ({"x": X, "labels": changed(Y, 3, -1)}, "label-out-of-range"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_are_refused(name: str, manifest: Manifest) -> None:
    """Each kind of mistake has its own code, facts and hint."""
    batch, reference = BAD[name]
    with pytest.raises(EdgepeftError) as error:
        checked_batch(batch, manifest)
    assert error.value.code == reference
    assert error.value.context
    assert error.value.hint


def test_error_names_the_path_of_the_value(manifest: Manifest) -> None:
    """Who has a thousand rows must not search for the one that is wrong."""
    with pytest.raises(BatchError, match=r"found 7 at \[2\]"):
        checked_batch({"x": X, "labels": changed(Y, 2, 7)}, manifest)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint64"])
def test_any_integer_kind_is_accepted_where_no_value_is_lost(dtype: str, manifest: Manifest) -> None:
    """Labels have the type of the data."""
    labels = checked_batch({"x": X, "labels": Y.astype(dtype)}, manifest)["labels"]
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, Y)


def test_float64_lists_and_strided_arrays_are_accepted(manifest: Manifest) -> None:
    """What numpy makes of Python's numbers is float64; the graphs get contiguous float32."""
    for x in (X.astype(np.float64), X.tolist(), np.repeat(X, 2, axis=1)[:, ::2], np.asfortranarray(X)):
        array = checked_batch({"x": x, "labels": Y}, manifest)["x"]
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, X)


def test_ignored_label_is_accepted(manifest: Manifest) -> None:
    """The ignore_index is no class, but valid."""
    labels = changed(Y, 0, -100)
    np.testing.assert_array_equal(checked_batch({"x": X, "labels": labels}, manifest)["labels"], labels)


def test_labels_are_left_out_where_none_are_needed(manifest: Manifest) -> None:
    """A labelled batch may be fed to predict."""
    assert set(checked_batch(GOOD, manifest, labels=False)) == {"x"}


def test_booleans_and_integers_stand_for_one_another(manifest: Manifest) -> None:
    """A mask of 0 and 1 fits a bool input and a bool mask fits an integer one; a 2 does not."""
    masked = replace(manifest, inputs=(TensorSpec("mask", "bool", ("batch",)), TensorSpec("ids", "int32", ("batch",))))
    batch = {"mask": np.array([0, 1]), "ids": np.array([True, False])}
    arrays = checked_batch(batch, masked, labels=False)
    assert (arrays["mask"].tolist(), arrays["ids"].tolist()) == ([False, True], [1, 0])
    with pytest.raises(BatchError, match="mask"):
        checked_batch({**batch, "mask": np.array([0, 2])}, masked, labels=False)
