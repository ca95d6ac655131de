"""Labels as people write them: names of classes, numbers of classes, numbers to predict."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgepeft_runtime.errors import DataError
from edgepeft_runtime.manifest import LabelSpec, Manifest
from edgepeft_runtime.tensorfile import Array


class BadLabel(Exception):
    """A label that means nothing; whoever knows the file and the line makes a :class:`DataError` of it."""

    def __init__(self, expected: str, found: Any) -> None:
        super().__init__(f"expected {expected}, found {_short(found)}")


LabelReader = Callable[[Any], Array]
"""From a label as read to an array of the label's shape without the batch; raises :class:`BadLabel`."""


def only_label(manifest: Manifest) -> LabelSpec:
    """The one label of a bundle; :class:`DataError` where there are several, which tables and folders cannot give."""
    if len(manifest.labels) != 1:
        names = ", ".join(spec.name for spec in manifest.labels)
        raise DataError(
            "several-labels",
            f"The bundle's loss takes {len(manifest.labels)} labels; this kind of data gives one.",
            context=f"labels: {names or 'none'}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    return manifest.labels[0]


def label_reader(manifest: Manifest) -> LabelReader:
    """What turns a label of the data into what the bundle's loss takes."""
    spec = only_label(manifest)
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        raise DataError(
            "label-per-token",
            f"The bundle takes labels of shape [{', '.join(map(str, spec.shape))}], not one for an example.",
            context=f"label {spec.name!r}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    if spec.classes is None or spec.shape[1:]:
        return lambda value: _numbers(value, spec)
    return lambda value: np.asarray(class_number(value, spec, manifest.classes), dtype=spec.dtype)


def class_number(value: Any, spec: LabelSpec, names: tuple[str, ...] | None) -> int:
    """The number of a class given by name or by number; raises :class:`BadLabel`."""
    text = str(value).strip() if isinstance(value, str) or type(value) is int else None
    if text and names is not None and text in names:
        return names.index(text)
    number = _whole(text)
    assert spec.classes is not None
    if number is not None and (0 <= number < spec.classes or number == spec.ignore_index):
        return number
    raise BadLabel(_expected(text, spec.classes, names), value)


def _expected(text: str | None, classes: int, names: tuple[str, ...] | None) -> str:
    numbers = f"a class number from 0 to {classes - 1}"
    if names is None:
        return numbers
    near = difflib.get_close_matches(text or "", names, n=1)
    shown = f"{near[0]!r} (is it that?)" if near else ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
    return f"the name of a class: {shown}, or {numbers}"


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _numbers(value: Any, spec: LabelSpec) -> Array:
    """One number, or a list of as many as the label has elements."""
    shape = tuple(int(dim) for dim in spec.shape[1:])
    expected = "a number" if math.prod(shape) == 1 else f"numbers of shape {list(shape)}"
    try:
        array = np.asarray(float(value) if isinstance(value, str) else value)
        if array.dtype.kind not in "iuf" or array.size != math.prod(shape) or array.shape not in (shape, ()):
            raise ValueError
        if not np.isfinite(array).all() or (np.dtype(spec.dtype).kind in "iu" and (array != np.trunc(array)).any()):
            raise ValueError
    except (ValueError, TypeError):
        raise BadLabel(expected, value) from None
    return array.astype(spec.dtype).reshape(shape)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
