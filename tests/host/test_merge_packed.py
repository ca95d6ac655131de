"""A packed base stays packed, byte for byte, through training and merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from peft import PeftModel

import edgepeft
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle import Bundle
from tests.networks import NETWORKS, to_numpy

NETWORK = NETWORKS["bert"]
Made = tuple[Path, Path]


@pytest.fixture(scope="module", params=["int8", "int4"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle with a packed base, and the update of a few steps."""
    folder = tmp_path_factory.mktemp(request.param)
    edgepeft.prepare(
        NETWORK.model(),
        NETWORK.example(),
        method=edgepeft.Lora(rank=4, target_modules=("query", "value")),
        compute=edgepeft.Quantization(request.param, smallest=1000),
        out=folder / "bundle",
    )
    with Trainer.open(folder / "bundle") as trainer:
        for inputs, labels in NETWORK.batches(4):
            trainer.step(to_numpy(inputs, labels), lr=0.05)
        return folder / "bundle", trainer.save_update(folder / "update.safetensors")


def _packed_bytes(model: onnx.ModelProto) -> dict[str, bytes]:
    """Content of the initializers that hold integers of 4 or 8 bits, by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in model.graph.initializer
        if tensor.name.endswith((".int8", ".int4"))
    }


def _inputs() -> dict[str, np.ndarray]:
    inputs, _ = next(iter(NETWORK.batches(1)))
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def test_merging_to_onnx_leaves_the_packed_bytes_alone(made: Made, tmp_path: Path) -> None:
    """The merged model has the integers of the bundle, and the logits that the device has."""
    bundle, update = made
    out = edgepeft.merge(bundle, update, to="onnx", out=tmp_path / "m.onnx")
    before, after = _packed_bytes(onnx.load(bundle / "infer.onnx")), _packed_bytes(onnx.load(out))
    assert len(before) > 10
    assert before == after
    with Trainer.open(bundle, adapter=update) as trainer:
        expected = trainer.predict(_inputs())["logits"]
    (logits,) = onnxruntime.InferenceSession(out).run(["logits"], _inputs())
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_the_adapter_of_a_packed_base_fits_the_fp32_model(made: Made, tmp_path: Path) -> None:
    """As a PEFT adapter beside the unpacked base it gives nearly the device's logits: what differs is the rounding."""
    bundle, update = made
    edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    model = PeftModel.from_pretrained(NETWORK.model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in _inputs().items()}).logits.numpy()
    with Trainer.open(bundle, adapter=update) as trainer:
        logits = trainer.predict(_inputs())["logits"]
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.15


def test_the_bundle_is_the_same_after_training(made: Made) -> None:
    """Nothing of the base was written to: every hash of the manifest still holds."""
    Bundle.open(made[0], verify=True)
