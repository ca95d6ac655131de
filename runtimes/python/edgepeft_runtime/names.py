"""Names in messages: suggest the one that was probably meant, or list the first of many."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from edgepeft_runtime.shown import quoted, shortened


def meant(text: str, names: Sequence[str], limit: int = 20) -> str:
    """Return the known name that was probably meant, or the first of the known names."""
    folded = {" ".join(name.split()).casefold(): name for name in reversed(names)}
    same = folded.get(" ".join(text.split()).casefold())
    near = [same] if same is not None else difflib.get_close_matches(text[:200], names, n=1)
    return f"{quoted(near[0])} (is it that?)" if near else some(names, limit)


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first of the names, for a line that must stay short."""
    return ", ".join(shortened(name, 80) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )
