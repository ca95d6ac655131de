"""A fleet over the tiny bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet.fleets import Fleet
from tests.support.tiny_bundle import build


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The campaign's bundle; not to be changed."""
    return build(tmp_path_factory.mktemp("bundles") / "fleet")


@pytest.fixture
def fleet(bundle: Path, tmp_path: Path) -> Fleet:
    """A host that has published nothing yet."""
    return Fleet.begin(tmp_path, bundle)
