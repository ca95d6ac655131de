"""Data is read for calibration as a bundle of the model reads it, without a bundle of the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgepeft
from edgepeft.data import load
from edgepeft.preparation import calibration
from edgepeft.preparation.stand_in import StandIn, stand_in
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.notices import EdgepeftWarning
from tests.support.networks import NETWORKS


@pytest.mark.parametrize(
    ("name", "loss"), [("bert", "cross_entropy"), ("llama", "causal_lm"), ("cnn", "cross_entropy")]
)
def test_batches_are_those_that_a_bundle_of_the_model_reads(
    name: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, sizes, dtypes and values, labels included; and the bundle has the same inputs and outputs."""
    network = NETWORKS[name]
    inputs, labels = next(network.batches(1))
    rows = {key: value.numpy() for key, value in inputs.items()} | {"labels": labels.numpy()}
    np.savez(tmp_path / "data.npz", allow_pickle=False, **rows)
    made = []
    prepare = calibration.prepare

    def spied(source: edgepeft.Source, **settings: object) -> edgepeft.Prepared:
        made.append(source.model)
        return prepare(source, **settings)

    monkeypatch.setattr(calibration, "prepare", spied)
    source = edgepeft.Source(network.model(), network.example(), loss)
    before = {key: value.clone() for key, value in source.model.state_dict().items()}
    found = calibration.calibration_batches(calibration.Sample(source, tmp_path / "data.npz"))
    assert isinstance(made[0], StandIn)
    assert all(torch.equal(value, before[key]) for key, value in source.model.state_dict().items())
    bundle = edgepeft.prepare(source, method="full", loss=loss, generation=False, out=tmp_path / "bundle").bundle
    examples = load(tmp_path / "data.npz", Bundle.open(bundle))
    expected = examples.batch(np.arange(len(found[0]["labels"])))
    assert found[0].keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[0][key], array)
        assert found[0][key].dtype == array.dtype


def test_other_sizes_have_no_stand_in() -> None:
    """A result of half as many rows: the model itself is prepared then."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: len(x) // 2]

    assert stand_in(Halves(), {"x": torch.rand(4, 3)}) is None
    assert stand_in(nn.Linear(3, 2), {"input": torch.rand(2, 3)}) is not None


def test_calibration_data_of_an_fp32_model_is_said_to_be_unused(tmp_path: Path) -> None:
    """It changes nothing without quantization or pruning."""
    model, batch = nn.Linear(4, 2), {"input": np.zeros((2, 4), np.float32)}
    with pytest.warns(EdgepeftWarning, match="calibration data does not change it"):
        edgepeft.prepare(
            model, torch.zeros(2, 4), compression=edgepeft.Compression(calibration=[batch]), out=tmp_path / "bundle"
        )
