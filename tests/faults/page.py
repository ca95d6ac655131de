"""``docs/FAULTS.md``."""

from __future__ import annotations

import datetime
import platform
import sqlite3
from collections import Counter
from collections.abc import Iterable

import numpy as np
import onnxruntime

from edgepeft import __version__
from tests.faults.injector import KINDS
from tests.faults.powercut import BYTES_LOST, NAMES_LOST
from tests.faults.runner import LOST, TRACEBACK, Point

_COLUMNS = (*KINDS, NAMES_LOST, BYTES_LOST)


_HOW = """\
Written by `python -m tests.faults --page docs/FAULTS.md` (`make nightly`); `make slow` runs every 10th point."""

_WHAT = """\
A point is one file operation of a command (creating, writing, flushing, renaming, removing a file or folder) that a
preloaded library lets fail, cuts short, or kills the process at. The figures are numbers of points. After each, what
was there before must be there, or what replaces it: checkpoints, updates (at the place, or in the ledger), keys,
rounds, bundles. The command must have ended well or with an error in words. The same command once more must end as an
undisturbed run does: updates and aggregates equal to the byte, each update counted once.

*Power cut*: the disk after the operation, as strictly as POSIX allows, computed from the record of an undisturbed run:
without the names that were not flushed into their folders, or with all names and without the bytes that were not
flushed. What a command has reported as done must survive it."""


def page(points: Iterable[Point]) -> str:
    """The text of ``docs/FAULTS.md``."""
    found = list(points)
    counts = Counter((point.command, point.kind) for point in found)
    failures = Counter((point.command, point.failure) for point in found)
    commands = list(dict.fromkeys(point.command for point in sorted(found, key=lambda point: point.command)))
    total = {failure: sum(point.failure == failure for point in found) for failure in (LOST, TRACEBACK)}
    lines = [
        "# Faults of the disk, kills and power cuts",
        "",
        _HOW,
        "",
        f"{len(found):,} points; lost {total[LOST]}, traceback instead of an error {total[TRACEBACK]}.",
        f"{datetime.date.today():%Y-%m-%d}, edgepeft {__version__}, onnxruntime {onnxruntime.__version__}, numpy",
        f"{np.__version__}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}, {platform.system()}.",
        "",
        _WHAT,
        "",
        f"| command | {' | '.join(_COLUMNS)} | lost | traceback |",
        f"|---|{'---|' * (len(_COLUMNS) + 2)}",
    ]
    for command in commands:
        cells = [counts[command, kind] for kind in _COLUMNS]
        cells += [failures[command, failure] for failure in (LOST, TRACEBACK)]
        lines.append(f"| `{command}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
