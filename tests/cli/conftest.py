"""Texts to train on, and a way to call the command."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edgepeft.cli.app import run
from tests.support.tiny_bundle import build, examples


class Outcome(NamedTuple):
    """Exit code, output and errors."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty texts whose label is plain from one word, as .csv."""
    draw = random.Random(0)
    lines = ["text,label"]
    for _ in range(60):
        word = draw.choice(["good", "fine", "bad", "awful"])
        label = "yes" if word in ("good", "fine") else "no"
        lines.append(f"the film was a {word}{' and its story' * draw.randint(0, 2)},{label}")
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle."""
    return build(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Examples for the tiny bundle."""
    path = tmp_path / "data.npz"
    np.savez(path, **examples(64))
    return path


@pytest.fixture
def edgepeft(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process and return exit code, output and errors."""

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call
