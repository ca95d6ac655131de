"""WebGPU in Chromium, on its software renderer: trusted where it agrees with WebAssembly, refused where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.web.accelerated import train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["mlp", "bert", "llama"])
def test_webgpu_trains_what_it_computes_as_webassembly_does(name: str, tmp_path: Path) -> None:
    found = train(name, "webgpu", tmp_path)
    programs = [(verdict["program"], verdict["accepted"]) for verdict in found["verdicts"]]
    assert programs == [("train", True), ("eval", True)]
    assert found["accelerated"] == pytest.approx(found["cpu"], rel=1e-5)


def test_the_older_webgpu_is_refused_with_figures(tmp_path: Path) -> None:
    """It returns zeros, without an error, where a kernel needs more buffers than the device has."""
    found = train("bert", "jsep", tmp_path)
    verdict = found["verdicts"][0]
    assert not verdict["accepted"] and verdict["facts"].startswith(("gradients.0: relative difference", "loss_sum: 0 "))
    assert found["accelerated"] == found["cpu"]


def test_a_kernel_that_webgpu_lacks_is_named(tmp_path: Path) -> None:
    found = train("cnn", "webgpu", tmp_path)
    verdict = found["verdicts"][0]
    assert not verdict["accepted"] and "MaxPool" in verdict["facts"]
    assert found["accelerated"] == found["cpu"]
