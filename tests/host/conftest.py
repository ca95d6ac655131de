"""The bundles of :mod:`tests.host.bundles` as fixtures; none of them is to be changed."""

from __future__ import annotations

import pytest

from tests.host import bundles
from tests.host.bundles import Trained


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return bundles.text(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return bundles.causal(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return bundles.images(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return bundles.regression(tmp_path_factory.getbasetemp())
