"""Sizes of tensors that somebody else wrote: bounded work on any list of numbers."""

from __future__ import annotations

from collections.abc import Sequence

MAX_AXES = 32
"""Axes of a tensor in any file: as many as every release of numpy takes."""

MAX_ELEMENTS = 2**53 - 1
"""Elements of a tensor, not counting axes of size 0: what all runtimes count exactly."""


def elements(shape: Sequence[int], most: int = MAX_ELEMENTS) -> int | None:
    """Return the product of the sizes, ``None`` where it is more than ``most`` or there are too many axes.

    The product is checked as it grows: at most ``MAX_AXES`` sizes are read, and no number gets longer than
    ``most`` times one size.
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
