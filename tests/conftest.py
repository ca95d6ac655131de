"""What all tests share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.host.bundles import Trained


@pytest.fixture(scope="session", autouse=True)
def _one_table_of_operators() -> Iterator[None]:
    """torch.onnx builds its table of operators anew for each export: half the time that a small model takes."""
    if "torch" not in sys.modules:
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


# Bundles made once for all tests, none of them to be changed. Imported late: tests of the runtime need no torch.


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.host import bundles

    return bundles.text(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.host import bundles

    return bundles.causal(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.host import bundles

    return bundles.images(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.host import bundles

    return bundles.regression(tmp_path_factory.getbasetemp())
