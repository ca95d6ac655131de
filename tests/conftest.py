"""Fixtures and settings of all tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would wait for one another's cores, and spin

if TYPE_CHECKING:
    from tests.support.bundles import Trained
    from tests.support.exports import SharedExports


def pytest_collection_finish() -> None:
    """Imported objects stay. Scanning them for garbage again and again is an eighth of the time of an export."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def _shared_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedExports | None]:
    """A network that many tests prepare is exported once per run; see ``tests.support.exports``."""
    if "torch" not in sys.modules:
        yield None
        return
    from tests.support import exports

    base = tmp_path_factory.getbasetemp()
    of_run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with exports.shared(of_run / "exports") as found:
        yield found


@pytest.fixture(autouse=True)
def _alike(request: pytest.FixtureRequest, _shared_exports: SharedExports | None) -> None:
    """Each test draws the same weights in any order of tests, and shares exports, unless it tests or patches them.

    No digest sees what a test has patched.
    """
    if _shared_exports is not None:
        sys.modules["torch"].manual_seed(0)
        marked = request.node.get_closest_marker("own_exports") is not None
        _shared_exports.on = not marked and "monkeypatch" not in request.fixturenames


@pytest.fixture
def without_det(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the gradient rule of Det: every operator that PyTorch exports has one otherwise."""
    from edgepeft_export.autodiff.registry import RULES

    monkeypatch.delitem(RULES, "Det")


# Bundles made once for all tests, none of them to be changed. Imported late: tests of the runtime need no torch.


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support import bundles

    return bundles.text(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support import bundles

    return bundles.causal(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support import bundles

    return bundles.images(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from tests.support import bundles

    return bundles.regression(tmp_path_factory.getbasetemp())
