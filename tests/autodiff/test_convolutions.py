"""Gradients of convolutions avoid ONNX Runtime's slow kernels: depthwise ones have no transposed convolution."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper, parser
from onnx_ir.passes.common import NameFixPass
from torch.nn import functional

from edgepeft_export import losses, optimizers
from edgepeft_export.autodiff import differentiate
from edgepeft_export.compile import compile_step
from edgepeft_export.forward import from_onnx
from edgepeft_export.graph.shapes import infer_shapes
from tests.support.onnx_runs import session

RANDOM = np.random.default_rng(0)


def gradient(
    body: str, output: str, constants: dict[str, np.ndarray], x: np.ndarray
) -> tuple[np.ndarray, Counter[str]]:
    """The gradient of the sum of y² / 2 for x, and the number of nodes of each operator."""
    channels, height, width = x.shape[1:]
    graph = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[n, {channels}, {height}, {width}] x) => ({output} y) '
        f"{{ {body} }}"
    )
    graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model = ir.from_proto(graph)
    infer_shapes(model)
    y, target = model.graph.outputs[0], model.graph.inputs[0]
    square = ir.node("Mul", [y, y])
    half = ir.node("ReduceSum", [square.outputs[0]], {"keepdims": 0})
    model.graph.extend([square, half])
    for node in (square, half):
        node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, y.shape if node is square else ir.Shape([])
    found = differentiate(model.graph, half.outputs[0], [target])
    model.graph.outputs[:] = [found[target]]
    NameFixPass()(model)
    return session(ir.to_proto(model)).run(None, {"x": x})[0] / 2, Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("quantized", [False, True])
def test_depthwise_convolutions_have_no_transposed_convolution(stride: int, quantized: bool) -> None:
    """The gradient is a convolution with the mirrored kernel, of the stored integers where it is quantized."""
    x = RANDOM.normal(size=(2, 16, 9, 8)).astype(np.float32)
    integers = RANDOM.integers(-127, 127, (16, 1, 3, 3), np.int8)
    steps = RANDOM.random(16, np.float32)
    weight = integers * steps[:, None, None, None]
    made = "w = DequantizeLinear<axis = 0>(i, s) " if quantized else ""
    have, operators = gradient(
        f"{made}y = Conv<group = 16, pads = [1, 1, 1, 1], strides = [{stride}, {stride}]>(x, w)",
        f"float[n, 16, {-(-9 // stride)}, {8 // stride}]",
        {"i": integers, "s": steps} if quantized else {"w": weight},
        x,
    )
    tensor = torch.from_numpy(x).requires_grad_()
    y = functional.conv2d(tensor, torch.from_numpy(weight), None, stride, 1, groups=16)
    (want,) = torch.autograd.grad(y.square().sum() / 2, tensor)
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-2)
    assert "ConvTranspose" not in operators


def test_the_gradient_of_a_large_image_stores_no_image(tmp_path: Path) -> None:
    """The zeros between a depthwise gradient's elements come from two vectors, so the step of the bundle is small."""
    model = parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[n, 2, 160, 160] x) => (float[n, 2, 80, 80] y)'
        "<float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2, 1, 1, 1] d = {1, 2}>"
        "{ a = Conv(x, w) y = Conv<group = 2, strides = [2, 2]>(a, d) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    forward, loss = from_onnx(tmp_path / "m.onnx", ["w"]), losses.by_name("mse")
    graph = compile_step(forward, loss, optimizers.SGD()).graphs["train"].graph
    assert any(node.op_type == "Resize" for node in graph)
    assert all(value.const_value is None or value.const_value.size <= 160 for value in graph.initializers.values())


def test_pooling_by_tiles_repeats_the_gradient() -> None:
    """Where windows lie side by side, each gradient is copied to its window."""
    x = RANDOM.normal(size=(2, 3, 6, 8)).astype(np.float32)
    body = "y = AveragePool<kernel_shape = [3, 2], strides = [3, 2]>(x)"
    have, operators = gradient(body, "float[n, 3, 2, 4]", {}, x)
    tensor = torch.from_numpy(x).requires_grad_()
    (want,) = torch.autograd.grad(functional.avg_pool2d(tensor, (3, 2)).square().sum() / 2, tensor)
    np.testing.assert_allclose(have, want.numpy(), rtol=1e-5, atol=1e-6)
    assert "Conv" not in operators and "ConvTranspose" not in operators
