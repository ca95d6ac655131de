"""Names in messages: suggest the one that was probably meant, or list the first of many."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from edgepeft_runtime.shown import quoted, shortened

_CLEARLY = 0.1
"""Difference of similarity above which the less similar of two names was clearly not meant."""


def similar(text: str, names: Iterable[str], count: int = 2) -> list[str]:
    """Return the known names that were probably meant, the most similar first; upper and lower case are equal."""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(_folded(name), []).append(name)
    asked = _folded(text[:200])
    near = [asked] if asked in folded else difflib.get_close_matches(asked, folded, n=count)
    near = [name for name in near if _likeness(asked, name) > _likeness(asked, near[0]) - _CLEARLY]
    return [name for key in near for name in folded[key]][:count]


def did_you_mean(text: str, names: Iterable[str], otherwise: str = "choose one of them.") -> str:
    """Return a hint: the known names that were probably meant, or ``otherwise`` if none is similar."""
    near = similar(text, names)
    return f"did you mean {' or '.join(map(quoted, near))}?" if near else otherwise


def path_hint(path: Path, otherwise: str) -> str:
    """Return a hint for a path that does not exist: names in its folder that were probably meant, or ``otherwise``."""
    if path.exists():
        return otherwise
    if path.is_symlink():
        return f"it is a symbolic link to {quoted(os.readlink(path))}, which leads to no file: correct the link."
    if path.parts[:1] == ("~",):
        return "shells replace ~ only at the beginning of an unquoted word: write the folder's own path."
    if path.parts and path.parts[0] in ("http:", "https:", "s3:", "gs:", "hf:"):
        return "nothing is downloaded here: download it first, and give the path of the file."
    try:
        near = similar(path.name, (entry.name for entry in islice(path.parent.iterdir(), 1000)))
    except OSError:
        return otherwise if path.parent.exists() else f"there is no folder {path.parent}: {otherwise}"
    return f"did you mean {' or '.join(quoted(str(path.with_name(name))) for name in near)}?" if near else otherwise


def meant(text: str, names: Sequence[str], limit: int = 20) -> str:
    """Return the known name that was probably meant, or the first of the known names."""
    near = similar(text, names, 1)
    return f"{quoted(near[0])} (is it that?)" if near else some(names, limit)


def some(names: Sequence[str], limit: int = 5) -> str:
    """Return the first of the names, for a line that must stay short."""
    return ", ".join(shortened(name, 80) for name in names[:limit]) + (
        f" and {len(names) - limit} more" if len(names) > limit else ""
    )


def _likeness(text: str, name: str) -> float:
    return difflib.SequenceMatcher(a=text, b=name).ratio()


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
