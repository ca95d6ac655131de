"""Quantized kernels are dequantized when a graph is loaded, not at every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from edgepeft_export.graph.kernels import dequantize_once
from edgepeft_export.graph.shapes import infer_shapes
from tests.support.onnx_runs import session

RANDOM = np.random.default_rng(0)
KERNEL, ZERO = RANDOM.integers(-128, 127, (6, 4, 3, 3), np.int8), np.arange(-2, 2, dtype=np.int8)
STORED = {
    "w": KERNEL,
    "by_output": RANDOM.random(6, np.float32),
    "by_input": RANDOM.random(4, np.float32),
    "whole": np.float32(0.01),
    "zero": ZERO,
    "m": RANDOM.integers(-128, 127, (5, 5), np.int8),
}


def _model(body: str, weight_is_input: bool = False) -> ir.Model:
    names = [name for name in STORED if f" {name}," in body or f" {name})" in body or f"({name}" in body]
    inputs = "float[2, 4, 5, 5] x" + (", int8[6, 4, 3, 3] w" if weight_is_input else "")
    proto = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[] y) {{ {body} }}')
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    kept = [name for name in names if not (weight_is_input and name == "w")]
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(STORED[name]), name) for name in kept)
    model = ir.from_proto(proto)
    infer_shapes(model)
    return model


@pytest.mark.parametrize(
    "body",
    [
        "k = DequantizeLinear<axis = 0>(w, by_output) y = Conv(x, k)",
        "k = DequantizeLinear<axis = 1>(w, by_input, zero) y = Conv(x, k)",
        "k = DequantizeLinear<axis = -3>(w, by_input, zero) y = Conv(x, k)",
        "k = DequantizeLinear(w, whole) y = Conv(x, k)",
        "t = Transpose<perm = [1, 0, 2, 3]>(w) k = DequantizeLinear<axis = 1>(t, by_output) y = ConvTranspose(x, k)",
    ],
)
def test_a_kernel_is_dequantized_when_its_graph_loads(body: str, tmp_path: Path) -> None:
    """ONNX Runtime computes the same, and its optimized graph has the float kernel as a constant."""
    model = _model(body)
    x = {"x": RANDOM.normal(size=(2, 4, 5, 5)).astype(np.float32)}
    (before,) = session(ir.to_proto(model)).run(None, x)
    assert dequantize_once(model.graph)
    (after,) = session(ir.to_proto(model)).run(None, x)
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    kept = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kept in (["Conv"], ["ConvTranspose"])


def test_bound_weights_are_dequantized_when_they_are_read() -> None:
    """A kernel that is an input changes with each call; a float copy of a matrix would take four times its memory."""
    assert not dequantize_once(_model("k = DequantizeLinear<axis = 0>(w, by_output) y = Conv(x, k)", True).graph)
    assert not dequantize_once(_model("k = DequantizeLinear(m, whole) y = MatMul(x, k)").graph)
