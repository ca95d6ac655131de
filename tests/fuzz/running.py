"""One target from its name to what came of it, so that a process of its own can do it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.fuzz.measure import Found, tried
from tests.fuzz.mutations import inputs
from tests.fuzz.targets import TARGETS, Scene

MEMORY = Path("/dev/shm")
"""Where there is one, files cost no disk."""


def run(name: str, count: int, seed: int) -> tuple[str, Found]:
    """Try one target in a folder of its own; returns what it reads, and what came of it."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        target = TARGETS[name](Scene.set_up(Path(folder)))
        return target.what, tried(target.read, inputs(target.corpus, target.mutate, count, seed))
