"""The environment of the training wheel."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Side = Callable[..., Any]


@pytest.fixture(scope="session")
def training_python() -> Path:
    """The interpreter of an environment with ``edgepeft[ort-training]``, which `make test` builds."""
    path = os.environ.get("EDGEPEFT_ORT_TRAINING_PYTHON")
    if not path:
        pytest.skip("EDGEPEFT_ORT_TRAINING_PYTHON names no environment with the training wheel: run `make test`")
    return Path(path).absolute()


@pytest.fixture
def side(training_python: Path) -> Side:
    """Runs a command of ``tests.ort_training.side`` and returns its output."""

    def run(*arguments: str | Path) -> Any:
        command = [str(training_python), "-m", "tests.ort_training.side", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
