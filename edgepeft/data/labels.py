"""Parse labels as people write them: names of classes, indices of classes, or numbers to predict."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgepeft.data.errors import LabelPerToken, SeveralLabels
from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.bundle.specs import LabelSpec
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.names import meant, some
from edgepeft_runtime.notices import notice
from edgepeft_runtime.shown import quoted


class BadLabel(Exception):
    """A label has no meaning. Callers, who know the file and the line, convert this to a ``DataError``."""

    def __init__(self, expected: str, value: object) -> None:
        missing = " (no label)" if value is None or value == "" else ""
        super().__init__(f"expected {expected}, found {quoted(value)}{missing}")


LabelReader = Callable[[object], Array]
"""Converts a label from a file to an array of the label's shape without the batch; raises ``BadLabel``.

Each data set needs its own reader, because all labels of a data set must be written in the same way.
"""


BALANCED = "balanced"
"""Name of weights of examples that are counted in the data if it has none: each class weighs the same."""


def weights_label(manifest: Manifest) -> LabelSpec | None:
    """Return the label that has the weights of the examples; ``None`` if the loss reads none."""
    name = manifest.loss.settings.get("example_weights")
    return next((spec for spec in manifest.labels if spec.name == name), None)


def only_label(manifest: Manifest) -> LabelSpec:
    """Return the only label of a bundle besides the weights of examples.

    Raises:
        DataError: There are others, which tables and folders cannot provide, or there is none.
    """
    own = [spec for spec in manifest.labels if spec is not weights_label(manifest)]
    if len(own) != 1:
        names = ", ".join(spec.name for spec in own)
        raise SeveralLabels(
            f"The bundle's loss has {len(own)} labels; this kind of data has one.",
            context=f"labels: {names or 'none'}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    return own[0]


def label_reader(manifest: Manifest) -> LabelReader:
    """Return a reader that converts the labels of one data set to arrays for the bundle's loss."""
    spec = only_label(manifest)
    if any(isinstance(dim, str) for dim in spec.shape[1:]):
        raise LabelPerToken(
            f"The bundle accepts labels of shape [{', '.join(map(str, spec.shape))}], not one per example.",
            context=f"label {spec.name!r}",
            hint="give the data as .npz, with an array for each input and label.",
        )
    if spec.classes is not None and not spec.shape[1:]:
        read = ClassReader(spec, manifest.classes)
        return lambda value: np.asarray(read(value), dtype=spec.dtype)
    if takes_several(manifest):
        return _SeveralReader(spec, manifest.classes or ())
    return lambda value: _numbers(value, spec)


def takes_several(manifest: Manifest) -> bool:
    """Whether an example may have several classes at once, so that its label is a probability for each class."""
    shape = only_label(manifest).shape
    return manifest.loss.kind in ("bce_with_logits", "binary_focal") and len(shape) == 2 and shape[1:] != (1,)


def normalized(name: str) -> str:
    """Return the name of a class in the form for comparison: without surrounding space, in Unicode's composed form."""
    return unicodedata.normalize("NFC", name.strip())


class ClassReader:
    """Reads labels as names of classes or as their indices, but not both in one data set.

    If some names are numbers that differ from their index ("1" to "5"), every number is a name: "0" is then not a
    class, and "1" is not the second class.
    """

    def __init__(self, spec: LabelSpec, names: Sequence[str] | None) -> None:
        assert spec.classes is not None
        self._classes, self._ignored = spec.classes, spec.ignore_index
        self._names = {normalized(name): index for index, name in enumerate(names or ())}
        self._numbers_are_names = any(_whole(name) not in (None, index) for name, index in self._names.items())
        self._first: dict[str, object] = {}
        """The first label read as a name, and the first read as an index."""

    def __call__(self, value: object) -> int:
        text = _text(value)
        if text in self._names:
            named = self._names[text]
            if text != str(named):
                self._notice_names(text, named)
                self._check_mixture("name", value)
            return named
        index = _whole(text)
        if index is not None and index == self._ignored:
            return index
        if index is None or not 0 <= index < self._classes or self._numbers_are_names:
            raise BadLabel(self._expected(text), value)
        self._check_mixture("index", value)
        return index

    def _notice_names(self, text: str, index: int) -> None:
        if _whole(text) is not None and "name" not in self._first:
            notice(f"labels are read as names of classes, not as indices: {text!r} is class {index}.")

    def _check_mixture(self, kind: str, value: object) -> None:
        self._first.setdefault(kind, value)
        other = self._first.get("index" if kind == "name" else "name")
        if other is not None:
            wanted = "name" if kind == "index" else "index"
            raise BadLabel(f"the {wanted} of a class, as {quoted(other)} before it", value)

    def _expected(self, text: str) -> str:
        indices = f"an index from 0 to {self._classes - 1}"
        near = re.fullmatch(r"(\d+)\.0*", text)
        indices += f" (write {near[1]})" if near else ""
        if not self._names:
            return indices
        names = meant(text, list(self._names))
        if self._numbers_are_names:
            return f"the name of a class (a number is a name here, not an index): {names}"
        return f"the name of a class: {names}, or {indices}"


def notice_one_class(source: str, labels: Array, manifest: Manifest) -> None:
    """Report that all examples of a table are of one class, from which nothing can be learned."""
    if only_label(manifest).classes is None or labels.ndim != 1 or len(labels) < 2 or (labels != labels[0]).any():
        return
    name = str(labels[0]) if manifest.classes is None else manifest.classes[int(labels[0])]
    notice(f"{source}: all {len(labels)} examples are of the class {quoted(name)}.")


class _SeveralReader:
    """Reads several classes at once: a number from 0 to 1 for each class, or the names of those that apply.

    Both may be a list, or a text separated by commas, semicolons, bars or spaces.
    """

    def __init__(self, spec: LabelSpec, names: Sequence[str]) -> None:
        self._spec, self._count = spec, int(spec.shape[1])
        self._names = {normalized(name): index for index, name in enumerate(names)}

    def __call__(self, value: object) -> Array:
        named = isinstance(value, str) and normalized(value) in self._names
        parts = [value] if named else _parts(value)
        if not isinstance(parts, list) or (isinstance(value, str) and not value.strip()):
            raise self._bad(value)
        by_name, by_number = self._by_name(parts), self._by_number(parts)
        if by_name is not None and by_number is not None and not np.array_equal(by_name, by_number):
            raise BadLabel("names or numbers that cannot be confused, such as a JSON list of numbers", value)
        label = by_name if by_number is None else by_number
        if label is None:
            raise self._bad(value)
        return label.astype(self._spec.dtype)

    def _by_name(self, parts: list[object]) -> Array | None:
        names = [normalized(part) if isinstance(part, str) else None for part in parts]
        if not all(name in self._names for name in names):
            return None
        label = np.zeros(self._count)
        label[[self._names[name] for name in names if name is not None]] = 1.0
        return label

    def _by_number(self, parts: list[object]) -> Array | None:
        numbers = [number(part) for part in parts]
        if len(numbers) != self._count or not all(part is not None and 0 <= part <= 1 for part in numbers):
            return None
        return np.asarray(numbers, np.float64)

    def _bad(self, value: object) -> BadLabel:
        names = f"the names of those that apply: {some(list(self._names))}; [] for none"
        return BadLabel(f"{self._count} numbers from 0 to 1, one for each class, or {names}", value)


def _text(value: object) -> str:
    """Return a label in the form for comparison with names; other types than text and numbers match no name."""
    if isinstance(value, str):
        return normalized(value)
    return str(value) if isinstance(value, int | float) else ""


def _whole(text: str) -> int | None:
    """Parse an integer in its usual form, without a plus sign or leading zeros; ``None`` for any other text."""
    return int(text) if re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text, re.ASCII) else None


def _parts(value: object) -> object:
    """Convert a text to the list that it represents: JSON, or separated by commas, semicolons, bars or spaces."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    parts = re.split(r"[,;|]", value) if re.search(r"[,;|]", value) else value.split()
    return [part.strip() for part in parts if part.strip()]


def number(value: Any) -> float | None:
    """Parse a finite number; ``None`` for anything else, also for 1_0 and digits of other scripts."""
    if isinstance(value, str) and not re.fullmatch(r"\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*", value, re.ASCII):
        return None
    try:
        parsed = float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) and not isinstance(value, bool) else None


def _numbers(value: object, spec: LabelSpec) -> Array:
    """Convert one number, or a list (or its text) with as many numbers as the label has elements."""
    shape = tuple(int(dim) for dim in spec.shape[1:])
    single = math.prod(shape) == 1
    expected = "a number" if single else f"numbers of shape {list(shape)}"
    try:
        if isinstance(value, str):
            parts = _parts(value)
            parts = parts if isinstance(parts, list) else []
            value = number(value) if single else [number(part) for part in parts]
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" or array.size != math.prod(shape) or array.shape not in (shape, ()):
            raise ValueError
        if not np.isfinite(array).all() or (np.dtype(spec.dtype).kind in "iu" and (array != np.trunc(array)).any()):
            raise ValueError
    except (ValueError, TypeError):
        raise BadLabel(expected, value) from None
    return array.astype(spec.dtype).reshape(shape)
