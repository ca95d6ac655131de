"""A quantized base stays quantized, byte for byte, through training and merging."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from peft import PeftModel

import edgepeft
from edgepeft.errors import Contradiction
from edgepeft.merging.errors import MergeError
from edgepeft.merging.targets.onnx import Onnx
from edgepeft_runtime import Trainer
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.train.update import read_update, write_update
from tests.support.bundles import Trained
from tests.support.networks import NETWORKS, to_numpy

NETWORK = NETWORKS["bert"]
Made = tuple[Path, Path]


@pytest.fixture(scope="module", params=["int8", "int8-row", "int4"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle with a quantized base, and the update of a few steps."""
    folder = tmp_path_factory.mktemp(request.param)
    compute, _, rounding = request.param.partition("-")
    edgepeft.prepare(
        NETWORK.model(),
        NETWORK.example(),
        method=edgepeft.Lora(rank=4, target_modules=("query", "value")),
        compute=edgepeft.Quantization(compute, smallest=1000, rounding=rounding or "auto"),
        out=folder / "bundle",
    )
    with Trainer.open(folder / "bundle") as trainer:
        for inputs, labels in NETWORK.batches(4):
            trainer.step(to_numpy(inputs, labels), lr=0.05)
        return folder / "bundle", trainer.save_update(folder / "update.safetensors")


def _packed_bytes(model: onnx.ModelProto) -> dict[str, bytes]:
    """Content of the initializers with integers of 4 or 8 bits, by name."""
    return {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in model.graph.initializer
        if tensor.name.endswith((".int8", ".int4"))
    }


def _inputs() -> dict[str, np.ndarray]:
    inputs, _ = next(iter(NETWORK.batches(1)))
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def test_merging_to_onnx_leaves_the_quantized_bytes_alone(made: Made, tmp_path: Path) -> None:
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


def test_the_adapter_of_a_quantized_base_fits_the_fp32_model(made: Made, tmp_path: Path) -> None:
    """As a PEFT adapter on the unquantized base it gives nearly the device's logits. The difference is the rounding."""
    bundle, update = made
    edgepeft.merge(bundle, update, to="peft", out=tmp_path / "adapter")
    model = PeftModel.from_pretrained(NETWORK.model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in _inputs().items()}).logits.numpy()
    with Trainer.open(bundle, adapter=update) as trainer:
        logits = trainer.predict(_inputs())["logits"]
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.15


def test_the_bundle_is_the_same_after_training(made: Made) -> None:
    """The base is unchanged: every hash of the manifest still matches."""
    Bundle.open(made[0], verify=True)


# Merged for good


def _run(path: Path) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(["logits"], _inputs())[0])


def _device(made: Made) -> np.ndarray:
    with Trainer.open(made[0], adapter=made[1]) as trainer:
        return trainer.predict(_inputs())["logits"]


def _off(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("how", ["dequantize", "requantize"])
def test_pairs_are_folded_and_the_error_is_reported(made: Made, how: str, tmp_path: Path) -> None:
    """No pair is left; outputs differ from the device's by as much as is said, far less than without the adapter."""
    bundle, update = made
    said: list[str] = []
    out = edgepeft.merge(
        bundle,
        update,
        to=Onnx(quantized=how),
        out=tmp_path / "m.onnx",
        calibration=[_inputs()],
        on_progress=said.append,
    )
    names = [tensor.name for tensor in onnx.load(out).graph.initializer]
    assert not [name for name in names if "lora" in name and not name.endswith(".merged")]
    assert said[0].startswith("4 LoRA pairs folded")
    reported = [float(part.split()[0]) for part in said[0].split("outputs: ")[1].split(", ")]
    exact = _device(made)
    assert _off(_run(out), exact) == pytest.approx(reported[how == "requantize"], rel=1e-2)
    with Trainer.open(bundle) as trainer:
        before = _off(trainer.predict(_inputs())["logits"], exact)
    assert max(reported) < 0.3 * before


def test_what_no_pair_changes_keeps_its_bytes(made: Made, tmp_path: Path) -> None:
    """Rounding again touches the adapted weights alone: four of all quantized ones, of the same kind and name."""
    bundle, update = made
    out = edgepeft.merge(bundle, update, to=Onnx(quantized="requantize"), out=tmp_path / "m.onnx")
    before, after = onnx.load(bundle / "infer.onnx"), onnx.load(out)
    kinds = [[node.op_type for node in model.graph.node] for model in (before, after)]
    for kind in ("MatMulIntegerToFloat", "MatMulNBits"):
        assert kinds[0].count(kind) == kinds[1].count(kind)
    packed = [
        {t.name: t for t in model.graph.initializer if t.data_type in (2, 3) and not t.name.endswith(".steps")}
        for model in (before, after)
    ]
    assert packed[0].keys() == packed[1].keys()
    arrays = [{name: numpy_helper.to_array(tensor) for name, tensor in side.items()} for side in packed]
    changed = [name for name in arrays[0] if arrays[0][name].tobytes() != arrays[1][name].tobytes()]
    assert len(changed) == 4
    assert all(arrays[0][name].dtype == arrays[1][name].dtype for name in changed)
    assert all(arrays[0][name].shape == arrays[1][name].shape for name in changed)


def test_an_adapter_without_effect_rounds_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    """Merging the bundle's own adapter, whose B is zero, reproduces the integers of the bundle, and its outputs."""
    bundle, _ = made
    with Trainer.open(bundle) as trainer:
        still = trainer.save_update(tmp_path / "still.safetensors")
        exact = trainer.predict(_inputs())["logits"]
    out = edgepeft.merge(bundle, still, to=Onnx(quantized="requantize"), out=tmp_path / "m.onnx")
    assert _off(_run(out), exact) < 0.02


def test_a_float_base_has_nothing_to_round_again(text: Trained, tmp_path: Path) -> None:
    """The error says so. Rounding is refused for other formats too."""
    with pytest.raises(MergeError) as caught:
        edgepeft.merge(text.bundle, text.update, to=Onnx(quantized="requantize"), out=tmp_path / "m.onnx")
    assert caught.value.code == "not-quantized"
    with pytest.raises(Contradiction, match="format 'peft'"):
        edgepeft.merge(text.bundle, text.update, to="peft", out=tmp_path / "a", calibration=[])


def test_quantized_kernels_are_folded_into(tmp_path: Path) -> None:
    """Convolutions whose kernels are stored as int8, one of them pointwise."""
    bundle, update = _convolutions(tmp_path)
    inputs = {"input": np.random.default_rng(1).normal(size=(3, 8, 9, 9)).astype(np.float32)}
    with Trainer.open(bundle, adapter=update) as trainer:
        exact = next(iter(trainer.predict(inputs).values()))
    for how in ("dequantize", "requantize"):
        out = edgepeft.merge(bundle, update, to=Onnx(quantized=how), out=tmp_path / f"{how}.onnx")
        session = onnxruntime.InferenceSession(out)
        assert sum(node.op_type == "Conv" for node in onnx.load(out).graph.node) == 2
        assert _off(np.asarray(session.run(None, inputs)[0]), exact) < (1e-5 if how == "dequantize" else 0.02)


def _convolutions(folder: Path) -> Made:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1))
    bundle = edgepeft.prepare(
        model,
        torch.zeros(2, 8, 9, 9),
        method=edgepeft.Lora(rank=2, target_modules=("0", "2")),
        compute=edgepeft.Quantization("int8", smallest=64),
        loss="mse",
        out=folder / "bundle",
    ).bundle
    changed = {name: array + 0.05 for name, array in Bundle.open(bundle).adapter().items()}
    with Trainer.open(bundle, adapter=changed) as trainer:
        update = replace(read_update(trainer.save_update(folder / "u")), adapter_sha256=trainer.bundle.adapter_sha256)
    return bundle, write_update(folder / "update.safetensors", update)
