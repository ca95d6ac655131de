"""Find values that are not finite."""

from __future__ import annotations

import numpy as np

from edgepeft_runtime.files.tensorfile import Array


def first_not_finite(array: Array) -> tuple[int, ...] | None:
    """Return the index of the first NaN or infinity; ``None`` if all values are finite or are not floats."""
    if array.dtype.kind != "f" or bool(np.isfinite(array).all()):
        return None
    return tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
