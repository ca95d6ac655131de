"""Methods for ``.onnx`` files work from the command, with their own options."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepeft.methods.registry import METHODS
from edgepeft_runtime.bundle.bundle import Bundle
from tests.cli.conftest import Command
from tests.support.onnx_networks import write as write_onnx


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small convolutional network."""
    return write_onnx(tmp_path_factory.mktemp("source") / "m.onnx")


@pytest.mark.parametrize(("method", "scale"), [("lora", 1.5), ("ffa", 1.5), ("rslora", 3.0)])
def test_low_rank_methods_take_rank_and_alpha(
    edgepeft: Command, method: str, scale: float, source: Path, tmp_path: Path
) -> None:
    """The bundle declares pairs of that rank and scale, of which ``ffa`` trains B alone."""
    options = ("--method", method, "--rank", "4", "--alpha", "6", "--target-modules", "dense")
    made = edgepeft("prepare", source, "--out", tmp_path / "b", *options)
    assert made.code == 0, made.err
    layout = Bundle.open(tmp_path / "b").manifest.adapter
    (pair,) = layout.pairs
    assert (pair.layer, pair.layout, pair.rank, pair.scale) == ("dense", "graph", 4, scale)
    assert layout.non_trainable == (("dense.lora_A",) if method == "ffa" else ())


def test_sift_accepts_the_initializers_that_are_named(edgepeft: Command, source: Path, tmp_path: Path) -> None:
    """A file has no modules, so its weights are named."""
    options = ("--method", "sift", "--train", "dense.weight", "--rate", "0.05")
    made = edgepeft("prepare", source, "--out", tmp_path / "b", *options)
    assert made.code == 0, made.err
    assert [spec.tensor for spec in Bundle.open(tmp_path / "b").manifest.sparse] == ["dense.weight"]


@pytest.mark.parametrize("method", [name for name, cls in METHODS.items() if not cls.supports_onnx])
def test_other_methods_are_refused_with_a_hint(edgepeft: Command, method: str, source: Path, tmp_path: Path) -> None:
    """The hint names the methods that support a file."""
    made = edgepeft("prepare", source, "--out", tmp_path / "b", "--method", method)
    assert made.code == 1 and "method-needs-torch" in made.err
    assert all(name in made.err for name, cls in METHODS.items() if cls.supports_onnx)
