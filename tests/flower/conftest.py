"""The environment with Flower, which the workstation's libraries do not go with."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

# What is inside runs there: `test_flower.py` runs it.
collect_ignore = [] if importlib.util.find_spec("flwr") else ["inside"]


@pytest.fixture(scope="session")
def fleet_python() -> Path:
    """The interpreter of an environment with ``edgepeft[fleet]``, ray and pytest, which `make test` builds."""
    path = os.environ.get("EDGEPEFT_FLEET_PYTHON")
    if not path:
        pytest.skip("EDGEPEFT_FLEET_PYTHON names no environment with Flower: run `make test`")
    return Path(path).absolute()
