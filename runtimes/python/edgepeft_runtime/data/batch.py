"""Check a batch against the manifest before it is fed to a graph, since ONNX Runtime does not notice all mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec, TensorSpec
from edgepeft_runtime.data.named import Ordered, array_of, by_name, names_of
from edgepeft_runtime.errors import (
    BatchError,
    EmptyBatch,
    LabelOutOfRange,
    MissingInput,
    NotFinite,
    UnknownInput,
    WrongDtype,
    WrongShape,
)
from edgepeft_runtime.files.finite import first_not_finite
from edgepeft_runtime.files.tensorfile import Array

NamedBatch = Mapping[str, Any]
"""Arrays, or values that numpy can convert to arrays, by the name of an input or a label."""

Batch = NamedBatch | Ordered
"""A batch by name, or as values in the manifest's order."""


def checked_batch(batch: Batch, manifest: Manifest, *, labels: bool = True) -> dict[str, Array]:
    """Return the batch as contiguous arrays of the declared dtypes.

    Args:
        batch: arrays by name, or in the manifest's order, inputs before labels. Integers of any dtype are converted if
            no value is lost; ``float64`` is narrowed.
        manifest: describes the inputs and labels.
        labels: whether labels are required. If not, labels in the batch are dropped.

    Raises:
        BatchError: the batch does not fit. The error names the tensor and the expected and actual value.
    """
    specs: Sequence[TensorSpec] = (*manifest.inputs, *manifest.labels) if labels else manifest.inputs
    named = by_name(batch, manifest, labels=labels)
    _check_names(named, specs, manifest)
    arrays = {spec.name: _converted(named[spec.name], spec) for spec in specs}
    _check_shapes(arrays, specs, manifest)
    for spec in specs:
        _check_values(arrays[spec.name], spec)
    return arrays


def examples_in(arrays: Mapping[str, Array], manifest: Manifest) -> int:
    """Return the number of examples of a batch: the size of the first axis of the first input."""
    first = arrays[manifest.inputs[0].name]
    return int(first.shape[0]) if first.ndim else 1


def _check_names(batch: Mapping[str, Any], specs: Sequence[TensorSpec], manifest: Manifest) -> None:
    missing = [spec.name for spec in specs if spec.name not in batch]
    if missing:
        raise MissingInput(
            f"The batch lacks {', '.join(map(repr, missing))}.",
            context=f"expected {names_of(specs)}; found {', '.join(map(repr, batch)) or 'nothing'}",
            hint="name the arrays as the bundle does.",
        )
    known = {spec.name for spec in (*manifest.inputs, *manifest.labels)}
    unknown = [name for name in batch if name not in known]
    if unknown:
        raise UnknownInput(
            f"The bundle has no input or label {', '.join(map(repr, unknown))}.",
            context=f"expected {names_of(specs)}",
            hint="leave it out of the batch, or name it as the bundle does.",
        )


def _converted(value: object, spec: TensorSpec) -> Array:
    try:
        array = array_of(value)
    except (ValueError, TypeError) as failure:
        raise _wrong_dtype(spec, "a value that is not an array", f"numpy cannot read it: {failure}") from None
    wanted = np.dtype(spec.dtype)
    if array.dtype.kind == wanted.kind == "f":
        with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is refused below
            return np.array(array, dtype=wanted, order="C", copy=None)
    if array.dtype.kind in "iub" and wanted.kind in "iub":
        return _lossless(array, wanted, spec)
    raise _wrong_dtype(spec, array.dtype.name, _dtype_hint(array, wanted))


def _lossless(array: Array, wanted: np.dtype[Any], spec: TensorSpec) -> Array:
    """Convert integers and booleans to the wanted dtype if it can represent every value."""
    low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    if array.dtype != wanted and array.dtype.kind != "b" and array.size:
        smallest, largest = int(array.min()), int(array.max())
        if smallest < low or largest > high:
            found = f"{array.dtype.name} with values from {smallest} to {largest}"
            raise _wrong_dtype(spec, found, f"the values must lie from {low} to {high}.")
    return np.array(array, dtype=wanted, order="C", copy=None)


def _dtype_hint(array: Array, wanted: np.dtype[Any]) -> str:
    if array.dtype.kind not in "iubf":
        return "pass numbers; tokenize text and decode images first."
    if wanted.kind == "f":
        return f"scale the values as in training, then .astype({wanted.name!r})."
    return (
        f"this input must be integers, such as token ids or class labels; convert them with .astype({wanted.name!r})."
    )


def _wrong_dtype(spec: TensorSpec, found: str, hint: str) -> BatchError:
    return WrongDtype(
        f"{spec.name!r} has the wrong dtype.",
        context=f"expected {spec.dtype}, found {found}",
        hint=hint,
    )


def _check_shapes(arrays: Mapping[str, Array], specs: Sequence[TensorSpec], manifest: Manifest) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        shape = arrays[spec.name].shape
        if len(shape) != len(spec.shape):
            raise _wrong_shape(spec, shape, f"it must have {len(spec.shape)} axes, the first for the examples.")
        for axis, (size, dim) in enumerate(zip(shape, spec.shape, strict=True)):
            if isinstance(dim, int):
                if size != dim:
                    raise _wrong_shape(spec, shape, f"axis {axis} must be {dim}.")
                continue
            known, where = sizes.setdefault(dim, (size, spec.name))
            if known != size:
                raise _wrong_shape(
                    spec, shape, f"axis {axis} ({dim}) is {size}, in {where!r} it is {known}; cut or pad."
                )
            _check_limits(spec, shape, axis, manifest)


def _check_limits(spec: TensorSpec, shape: tuple[int, ...], axis: int, manifest: Manifest) -> None:
    size, name = shape[axis], str(spec.shape[axis])
    limits = manifest.dimensions[name]
    if size == 0:
        raise EmptyBatch(
            f"{spec.name!r} is empty.",
            context=f"axis {axis} ({name}) is 0; shape {list(shape)}",
            hint="leave empty batches out.",
        )
    if size < limits.min or (limits.max is not None and size > limits.max):
        most = "" if limits.max is None else f" and at most {limits.max}"
        raise _wrong_shape(spec, shape, f"axis {axis} ({name}) must be at least {limits.min}{most}; cut or pad.")


def _wrong_shape(spec: TensorSpec, found: tuple[int, ...], hint: str) -> BatchError:
    return WrongShape(
        f"{spec.name!r} has the wrong shape.",
        context=f"expected [{', '.join(map(str, spec.shape))}], found {list(found)}",
        hint=hint,
    )


def _check_values(array: Array, spec: TensorSpec) -> None:
    index = first_not_finite(array)
    if index is not None:
        raise NotFinite(
            f"{spec.name!r} contains a value that is not finite.",
            context=f"at {list(index)}: {array[index]}",
            hint="fill or leave out missing values, and keep values within the range of float32.",
        )
    if isinstance(spec, LabelSpec) and spec.classes is not None:
        _check_labels(array, spec, spec.classes)


def _check_labels(array: Array, spec: LabelSpec, classes: int) -> None:
    wrong = (array < 0) | (array >= classes)
    if spec.ignore_index is not None:
        wrong &= array != spec.ignore_index
    if wrong.any():
        index = tuple(map(int, np.argwhere(wrong)[0]))
        ignored = "" if spec.ignore_index is None else f", or {spec.ignore_index} to ignore a label"
        raise LabelOutOfRange(
            f"{spec.name!r} contains a class index that is out of range.",
            context=f"expected 0 to {classes - 1}{ignored}; found {array[index]} at {list(index)}",
            hint="number the classes from 0, as the bundle does.",
        )
