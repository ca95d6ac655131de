"""Compare what a block prints with what its page says that it prints."""

from __future__ import annotations

import re

RELATIVE, ABSOLUTE = 0.15, 0.05
"""How far a number may be from the page's: training rounds differently on another processor."""

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def missing(expected: str, printed: str) -> list[str]:
    """The lines of a page that were not printed, in this order; other lines may lie between them.

    ``…`` in a page's line stands for any text.
    """
    rest = [" ".join(line.split()) for line in printed.splitlines()]
    found: list[str] = []
    for line in filter(None, (" ".join(line.split()) for line in expected.splitlines())):
        index = next((i for i, other in enumerate(rest) if _alike(line, other)), None)
        if index is None:
            found.append(line)
        else:
            rest = rest[index + 1 :]
    return found


def _alike(expected: str, printed: str) -> bool:
    pattern = r"([-\d.,e]*\d)".join(map(_any, _NUMBER.split(expected)))
    found = re.fullmatch(pattern, printed)
    return found is not None and all(map(_near, _NUMBER.findall(expected), found.groups()))


def _any(text: str) -> str:
    return ".*?".join(map(re.escape, text.split("…")))


def _near(expected: str, printed: str) -> bool:
    if not _NUMBER.fullmatch(printed):
        return False
    wanted, got = (float(text.replace(",", "")) for text in (expected, printed))
    return abs(wanted - got) <= max(ABSOLUTE, RELATIVE * abs(wanted))
