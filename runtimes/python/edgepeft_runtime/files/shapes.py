"""Count the elements of untrusted shapes with bounded work."""

from __future__ import annotations

from collections.abc import Sequence

MAX_AXES = 32
"""Largest number of axes of a tensor in any file: the limit of the oldest supported numpy."""

MAX_ELEMENTS = 2**53 - 1
"""Largest number of elements of a tensor, not counting axes of size 0: all runtimes represent it exactly."""


def elements(shape: Sequence[int], most: int = MAX_ELEMENTS) -> int | None:
    """Return the product of the sizes; ``None`` if it exceeds ``most`` or there are too many axes.

    The product is checked as it grows: at most ``MAX_AXES`` sizes are read, and no number exceeds ``most`` times one
    size.
    """
    if len(shape) > MAX_AXES:
        return None
    sizes = [size for size in shape if size]
    empty = len(sizes) < len(shape)
    product, most = 1, MAX_ELEMENTS if empty else most
    for size in sizes:
        product *= size
        if product > most:
            return None
    return 0 if empty else product
