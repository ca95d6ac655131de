"""Run one target by its name, in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.fuzz.measure import Found, tried
from tests.fuzz.mutations import inputs
from tests.fuzz.targets import TARGETS, Scene

MEMORY = Path("/dev/shm")
"""Where there is one, files cost no disk."""


def run(name: str, count: int, seed: int) -> tuple[str, Found]:
    """Run one target in a folder of its own; return its title and its results."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        target = TARGETS[name](Scene.set_up(Path(folder)))
        return target.what, tried(target.read, inputs(target.corpus, target.mutate, count, seed))
