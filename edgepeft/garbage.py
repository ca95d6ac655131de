"""Python's search for cycles of objects that nothing refers to."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS = 100_000
"""New objects after which the search starts, instead of some hundreds or thousands."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Search for cycles rarely in a context, and not among the objects that exist when it begins.

    A preparation makes millions of objects, nearly all of which live until its end, and every search visits most of
    them again: a fifth of the time of the preparation of a small language model of 30 blocks. Objects without cycles,
    which large arrays are, are freed at once as always.
    """
    before, outermost = gc.get_threshold(), gc.get_freeze_count() == 0
    if outermost:
        gc.freeze()
    gc.set_threshold(max(before[0], _OBJECTS) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if outermost:
            gc.unfreeze()
