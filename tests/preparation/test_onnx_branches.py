"""Files whose branches depend on sizes or numbers: as the released voice detectors, which have a model per rate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgepeft
from edgepeft_export import optimizers
from edgepeft_runtime import Trainer
from edgepeft_runtime.files.tensorfile import Array
from edgepeft_runtime.notices import EdgepeftWarning

SGD = optimizers.SGD(lr=1.0, momentum=0.0, weight_decay=0.0)


def _branch(name: str, nodes: list[onnx.NodeProto], output: str, weights: dict[str, Array]) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    return helper.make_graph(nodes, name, [], [value], tensors)


def _weight(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)


def _file(path: Path, *, by_size: bool) -> Path:
    """One of two layers by the input ``rate``; inside, ``x`` loses its second axis if that has one element."""
    squeezed = _branch("squeezed", [helper.make_node("Squeeze", ["x", "second"], ["flat"])], "flat", {})
    kept = _branch("kept", [helper.make_node("Identity", ["x"], ["whole"])], "whole", {})
    inner = [
        helper.make_node("Shape", ["x"], ["shape"], start=1, end=2),
        helper.make_node("Equal", ["shape", "second"], ["single"]),
        helper.make_node("If", ["single"], ["given"], then_branch=squeezed, else_branch=kept),
    ]
    branches = {
        name: _branch(
            name,
            [*(inner if by_size else [helper.make_node("Identity", ["x"], ["given"])]),
             helper.make_node("MatMul", ["given", f"W{at}"], [f"y{at}"])],
            f"y{at}",
            {f"W{at}": _weight(at)},
        )
        for at, name in enumerate(("then_branch", "else_branch"))
    }  # fmt: skip
    nodes = [
        helper.make_node("Equal", ["rate", "high"], ["is_high"]),
        helper.make_node("If", ["is_high"], ["y"], **branches),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m", 4] if by_size else ["n", 4]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None if by_size else ["n", 4])
    constants = [numpy_helper.from_array(np.array([1]), "second"), numpy_helper.from_array(np.array(16), "high")]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("rate", [16, 8])
def test_layers_inside_a_branch_have_pairs(rate: int, tmp_path: Path) -> None:
    """Only the branch that runs changes, by the gradient of its layer; the merged file has both branches."""
    path = _file(tmp_path / "m.onnx", by_size=False)
    edgepeft.prepare(path, method=edgepeft.Lora(rank=2), loss="mse", optimizer=SGD, out=tmp_path / "b")
    x = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    given = {"x": x, "rate": np.array(rate)}
    weight = _weight(0 if rate == 16 else 1)
    taken = "W0" if rate == 16 else "W1"
    with Trainer.open(tmp_path / "b") as trainer:
        before = trainer.parameters()
        trainer.step({**given, "labels": np.zeros((3, 4), np.float32)})
        change = {name: before[name] - after for name, after in trainer.parameters().items()}
        trainer.step({**given, "labels": np.zeros((3, 4), np.float32)}, lr=0.05)
        trainer.save_update(tmp_path / "u.safetensors")
        trained = trainer.predict(given)["y"]
    assert [name for name, array in change.items() if np.any(array)] == [f"{taken}.lora_B"]
    expected = 2 * (x @ before[f"{taken}.lora_A"]).T @ (2 * x @ weight / 12)
    np.testing.assert_allclose(change[f"{taken}.lora_B"], expected, rtol=1e-4, atol=1e-6)
    edgepeft.merge(tmp_path / "b", tmp_path / "u.safetensors", to="onnx", out=tmp_path / "merged.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "merged.onnx").run(None, given)
    np.testing.assert_allclose(found, trained, rtol=1e-4, atol=1e-5)


def test_sizes_that_decide_a_rank_are_fixed(tmp_path: Path) -> None:
    """The bundle is for the sizes and the rate of the example, and says so; ``rate`` is no input any more."""
    path, x = _file(tmp_path / "m.onnx", by_size=True), np.ones((3, 1, 4), np.float32)
    example = {"x": x, "rate": np.array(8)}
    with pytest.warns(EdgepeftWarning, match="the bundle is for m = 1, rate = 8"):
        edgepeft.prepare(path, example, method="lora", loss="mse", out=tmp_path / "b")
    with Trainer.open(tmp_path / "b") as trainer:
        assert [spec.shape for spec in trainer.bundle.manifest.inputs] == [("n", 1, 4)]
        found = trainer.predict({"x": x})["y"]
        losses = [trainer.step({"x": x, "labels": np.zeros((3, 4), np.float32)}, lr=0.01) for _ in range(9)]
    np.testing.assert_allclose(found, x[:, 0] @ _weight(1), rtol=1e-5)
    assert losses[-1] < 0.9 * losses[0]
