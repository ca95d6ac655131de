"""Read arrays from an ``.npz`` file, by the name of an input or a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepeft_runtime.bundle.manifest import Manifest
from edgepeft_runtime.data.batch import checked_batch
from edgepeft_runtime.data.datasets import Arrays, read_npz
from edgepeft_runtime.errors import BatchError, DataError, EdgepeftError, NotFinite

_CHUNK = 256
"""Examples checked at a time, so that checking needs no second copy of all data."""


def read_arrays(path: Path, manifest: Manifest, *, labelled: bool) -> Arrays:
    """Return the arrays that the bundle needs; the first axis of each counts the examples.

    Raises:
        DataError: The file is damaged; an array is missing, unknown or of the wrong shape; arrays are of different
            lengths; a value or a label is out of range.
    """
    try:
        arrays = read_npz(path)
    except DataError as error:
        raise _at(path, error, error.context) from error
    for start in range(0, len(arrays), _CHUNK):
        stop = min(start + _CHUNK, len(arrays))
        try:
            checked_batch(arrays.batch(np.arange(start, stop)), manifest, labels=labelled)
        except (BatchError, NotFinite) as error:
            offset = f"counted from example {start}" if start else None
            raise _at(path, error, "\n".join(filter(None, (error.context, offset)))) from error
    return arrays


def _at(path: Path, error: EdgepeftError, context: str | None) -> EdgepeftError:
    """Return the error with the path of the file in its message."""
    message = error.message if str(path) in error.message else f"{path}: {error.message}"
    return error.reworded(message, context)
