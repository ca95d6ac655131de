"""The golden bundle: this runtime reproduces PyTorch's results, and so does a newly prepared bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepeft_runtime import Bundle, Trainer, read_tensors

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
    return content


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return dict(read_tensors(GOLDEN / "data.safetensors").tensors)


def _cut(data: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: array[start:stop] for name, array in data.items()}


def _assert_reproduces(bundle: Path, data: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    tolerance = expected["relative_tolerance"]
    with Trainer.open(bundle) as trainer:
        losses = [trainer.step(_cut(data, *batch)) for batch in expected["batches"]]
        assert losses == pytest.approx(expected["losses"], rel=tolerance)
        evaluation = trainer.evaluate(_cut(data, *expected["evaluate"]))
        assert evaluation.loss == pytest.approx(expected["evaluation"]["loss"], rel=tolerance)
        assert evaluation.accuracy == pytest.approx(expected["evaluation"]["accuracy"])
        outputs = trainer.predict(_cut(data, *expected["predict"]))
    assert set(outputs) == set(expected["outputs"])
    for name, values in expected["outputs"].items():
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)


def test_ten_steps_have_the_losses_of_torch(data: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Losses of uneven batches, evaluation and outputs after them are those that were written down."""
    assert len(expected["losses"]) == 10
    assert expected["evaluation"]["loss"] < np.mean(expected["losses"][:4])
    _assert_reproduces(GOLDEN / "bundle", data, expected)


def test_a_batch_in_pieces_is_the_same_step(data: dict[str, np.ndarray], expected: dict[str, Any]) -> None:
    """Each step cut into micro-batches of two examples, some without a label that counts, gives the same losses."""
    with Trainer.open(GOLDEN / "bundle") as trainer:
        losses = []
        for start, stop in expected["batches"]:
            pieces = [_cut(data, first, min(first + 2, stop)) for first in range(start, stop, 2)]
            losses.append(trainer.step(*pieces))
    assert losses == pytest.approx(expected["losses"], rel=expected["relative_tolerance"])


def test_the_files_are_small() -> None:
    """The bundle is committed: below 100 kB."""
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file() and path.suffix != ".pyc") < 100_000


def test_a_bundle_prepared_again_is_the_same(
    tmp_path: Path, data: dict[str, np.ndarray], expected: dict[str, Any]
) -> None:
    """The committed bundle equals today's: same initial values, same losses, same interface."""
    from tests.golden import make

    fresh = make.expected()
    assert fresh["losses"] == pytest.approx(expected["losses"], rel=expected["relative_tolerance"])
    for name, array in make.data().items():
        np.testing.assert_array_equal(array, data[name])
    bundle = make.prepare(tmp_path / "bundle")
    _assert_reproduces(bundle, data, expected)
    ours, golden = Bundle.open(bundle), Bundle.open(GOLDEN / "bundle")
    assert ours.adapter_sha256 == golden.adapter_sha256
    for part in ("inputs", "labels", "outputs", "parameters", "buckets", "loss", "optimizer", "classes", "dimensions"):
        assert getattr(ours.manifest, part) == getattr(golden.manifest, part), part
