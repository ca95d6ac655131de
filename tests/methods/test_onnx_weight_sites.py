"""LoRA on weights of an .onnx file that no matmul of its own reads: of recurrent operators, transposed convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper, parser

import edgepeft
from edgepeft_export import optimizers
from edgepeft_runtime import Trainer
from edgepeft_runtime.files.tensorfile import Array

SGD = optimizers.SGD(lr=1.0, momentum=0.0, weight_decay=0.0)
RECURRENT = "(float[5, n, 3] x) => (float[5, k, n, 4] y)"
NETWORKS = {
    "LSTM": (
        RECURRENT,
        'y = LSTM<hidden_size = 4, direction = "bidirectional">(x, W, R)',
        {"W": (2, 16, 3), "R": (2, 16, 4)},
    ),
    "GRU": (
        RECURRENT,
        "y = GRU<hidden_size = 4, linear_before_reset = 1>(x, W, R)",
        {"W": (1, 12, 3), "R": (1, 12, 4)},
    ),
    "RNN": (RECURRENT, "y = RNN<hidden_size = 4>(x, W, R)", {"W": (1, 4, 3), "R": (1, 4, 4)}),
    "ConvTranspose": (
        "(float[n, 3, 4, 5] x) => (float[n, 2, h, w] y)",
        "y = ConvTranspose<strides = [2, 1]>(x, W)",
        {"W": (3, 2, 3, 2)},
    ),
}


def _file(path: Path, kind: str) -> Path:
    values, body, weights = NETWORKS[kind]
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> g {values} {{ {body} }}')
    draw = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(0.5 * draw.normal(size=shape).astype(np.float32), name))
    onnx.save(model, path)
    return path


def _stepped(bundle: Path, batch: dict[str, Array], adapter: dict[str, Array] | None = None) -> dict[str, Array]:
    """The gradient of the loss with respect to each parameter."""
    with Trainer.open(bundle, adapter=adapter) as trainer:
        before = trainer.parameters()
        trainer.step(batch)
        return {name: before[name] - after for name, after in trainer.parameters().items()}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_pair_has_the_gradient_that_its_weight_implies(kind: str, tmp_path: Path) -> None:
    """That of B A is that of the whole weight; the merged file computes what the device computes."""
    path = _file(tmp_path / "m.onnx", kind)
    x = np.random.default_rng(1).normal(size=(5, 2, 3) if kind != "ConvTranspose" else (2, 3, 4, 5)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    batch = {"x": x, "labels": np.ones_like(y)}
    edgepeft.prepare(path, method=edgepeft.Lora(rank=2), loss="mse", optimizer=SGD, out=tmp_path / "lora")
    edgepeft.prepare(path, trainable=["*"], loss="mse", optimizer=SGD, out=tmp_path / "whole")
    draw = np.random.default_rng(2)
    with Trainer.open(tmp_path / "lora") as trainer:
        adapter = {
            name: draw.normal(size=array.shape).astype(np.float32) for name, array in trainer.parameters().items()
        }
        found = trainer.predict({"x": x}, adapter)["y"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    sums = {name: weight + 2 * _product(adapter, name, kind, weight.shape) for name, weight in weights.items()}
    with Trainer.open(tmp_path / "whole") as trainer:
        np.testing.assert_allclose(found, trainer.predict({"x": x}, sums)["y"], rtol=1e-4, atol=1e-5)
    gradients, of_weights = (
        _stepped(tmp_path / "lora", batch, adapter),
        _stepped(tmp_path / "whole", batch, sums),
    )
    for pair in {name.rpartition(".lora_")[0] for name in adapter}:
        weight, _, direction = pair.partition(".")
        whole = of_weights[weight]
        whole = whole.swapaxes(0, 1) if kind == "ConvTranspose" else whole[int(direction == "reverse")]
        a, b = adapter[f"{pair}.lora_A"], adapter[f"{pair}.lora_B"]
        rows = whole.reshape(len(whole), -1)
        np.testing.assert_allclose(
            gradients[f"{pair}.lora_A"].reshape(2, -1), 2 * b.reshape(-1, 2).T @ rows, rtol=1e-3, atol=1e-4
        )
        np.testing.assert_allclose(
            gradients[f"{pair}.lora_B"].reshape(-1, 2), 2 * rows @ a.reshape(2, -1).T, rtol=1e-3, atol=1e-4
        )
    with Trainer.open(tmp_path / "lora") as trainer:
        for _ in range(2):
            trainer.step(batch)
        trainer.save_update(tmp_path / "u.safetensors")
        trained = trainer.predict({"x": x})["y"]
    merged = edgepeft.merge(tmp_path / "lora", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "merged.onnx")
    assert len(onnx.load(merged).graph.node) == 1
    np.testing.assert_allclose(
        onnxruntime.InferenceSession(merged).run(None, {"x": x})[0], trained, rtol=1e-4, atol=1e-5
    )


def _product(adapter: dict[str, Array], weight: str, kind: str, shape: tuple[int, ...]) -> Array:
    """B A of the pairs of a weight, in its shape."""
    pairs = sorted({name.rpartition(".lora_")[0] for name in adapter if name.split(".")[0] == weight})
    products = [adapter[f"{pair}.lora_B"].reshape(-1, 2) @ adapter[f"{pair}.lora_A"].reshape(2, -1) for pair in pairs]
    if kind == "ConvTranspose":
        return products[0].reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)
    return np.stack(products)
