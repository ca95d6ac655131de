"""The environment of a Flower process before any code of an app runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from edgepeft_runtime import read_tensors
from edgepeft_runtime.bundle.bundle import Bundle
from tests.flower.inside.devices import Data

GOLDEN = Path(__file__).parents[2] / "golden"

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """A convolutional network with LoRA and a head that trains."""
    return Bundle.open(GOLDEN / "bundle")


@pytest.fixture(scope="session")
def examples() -> Data:
    """Forty examples for it."""
    return dict(read_tensors(GOLDEN / "data.safetensors").tensors)


@pytest.fixture(params=["lora", "bitfit", "sift"])
def kind(request: pytest.FixtureRequest) -> Bundle:
    """A small network's bundle, of each kind of update."""
    folder = os.environ.get("EDGEPEFT_FLOWER_BUNDLES")
    if folder is None:
        pytest.skip("EDGEPEFT_FLOWER_BUNDLES names no folder: tests/flower/test_flower.py prepares it")
    return Bundle.open(Path(folder) / request.param)
