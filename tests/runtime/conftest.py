"""The tiny bundle, built once, and copies of it to damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import segmented_bundle
from tests.support.tiny_bundle import build


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with AdamW; not to be changed."""
    return build(tmp_path_factory.mktemp("bundles") / "adamw")


@pytest.fixture(scope="session")
def sgd_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with SGD; not to be changed."""
    return build(tmp_path_factory.mktemp("bundles") / "sgd", optimizer="sgd")


@pytest.fixture(scope="session")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose programs have several calls; not to be changed."""
    return segmented_bundle.build(tmp_path_factory.mktemp("bundles") / "segmented")


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    """Makes a copy of the bundle that the test may change."""
    return lambda: Path(shutil.copytree(bundle, tmp_path / "copy"))
