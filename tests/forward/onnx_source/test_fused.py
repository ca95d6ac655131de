"""Files as ONNX Runtime's optimizers save them. Reading one compares the graph with ONNX Runtime's own kernel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgepeft_export.forward.onnx_source.file import from_onnx
from edgepeft_export.forward.onnx_source.lora import GraphLora

SIZES = {"w": (8, 8), "v": (8, 24), "c": (24,), "b": (8,), "s": (8,), "k": (8, 8, 1, 1), "e": (30, 8), "q": (8, 8)}
"""Constants of the graphs: h = x W is what each operator reads."""

OPERATORS = {
    "QuickGelu": "y = com.microsoft.QuickGelu<alpha: float = 1.5>(h)",
    "Gelu": "y = com.microsoft.Gelu(h)",
    "BiasGelu": "y = com.microsoft.BiasGelu(h, b)",
    "FastGelu": "y = com.microsoft.FastGelu(h, b)",
    "SkipLayerNormalization": "y, , , t = com.microsoft.SkipLayerNormalization(h, x, s, b, b)  u = MatMul(t, q)",
    "SkipSimplifiedLayerNormalization": "y = com.microsoft.SkipSimplifiedLayerNormalization(h, x, s)",
    "SimplifiedLayerNormalization": "y = SimplifiedLayerNormalization<axis: int = -1>(h, s)",
    "FusedMatMul": "y = com.microsoft.FusedMatMul<transB: int = 1, alpha: float = 0.5>(h, x)",
    "Attention": "y = com.microsoft.Attention<num_heads: int = 2, unidirectional: int = 1>(h, v, c)",
    "Attention, mask": "y = com.microsoft.Attention<num_heads: int = 2>(h, v, c, mask)",
    "Attention, lengths": "n = ReduceSum<keepdims: int = 0>(mask, one)  "
    "y = com.microsoft.Attention<num_heads: int = 2>(h, v, c, n)",
    "MultiHeadAttention": "y = com.microsoft.MultiHeadAttention<num_heads: int = 2>(h, x, x)",
    "EmbedLayerNormalization": "z, n, = com.microsoft.EmbedLayerNormalization(mask, mask, e, e, e, s, b, mask)  "
    "y = Add(h, z)",
}
IMAGES = {
    "FusedConv": 'y = com.microsoft.FusedConv<activation: string = "LeakyRelu", activation_params: floats = [0.2]>'
    "(h, k)",
    "FusedConv, sum": 'y = com.microsoft.FusedConv<activation: string = "Relu">(h, k, b, h)',
    "FusedGemm": 'a = Flatten(h)  y = com.microsoft.FusedGemm<activation: string = "Tanh", transB: int = 1>(a, w)',
}


def _file(path: Path, head: str, body: str) -> Path:
    text = f'<ir_version: 9, opset_import: ["": 20, "com.microsoft": 1]> g ({head}) => (float y) {{ {body} }}'
    model = parser.parse_model(text)
    draw = np.random.default_rng(0)
    used = {name for node in model.graph.node for name in node.input}
    arrays = {name: draw.normal(size=shape).astype("f4") for name, shape in SIZES.items() if name in used}
    if "one" in used:
        arrays["one"] = np.ones(1, np.int64)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("name", OPERATORS)
def test_fused_operator_is_written_by_others(name: str, tmp_path: Path) -> None:
    path = _file(tmp_path / "m.onnx", "float[N,5,8] x, int32[N,5] mask", f"h = MatMul(x, w)  {OPERATORS[name]}")
    draw = np.random.default_rng(1)
    example = {"x": draw.normal(size=(2, 5, 8)).astype("f4"), "mask": np.array([[1, 1, 1, 0, 0], [1] * 5], np.int32)}
    _check(path, example)


@pytest.mark.parametrize("name", IMAGES)
def test_fused_convolution_is_written_by_others(name: str, tmp_path: Path) -> None:
    size = 1 if name == "FusedGemm" else 4
    path = _file(tmp_path / "m.onnx", f"float[N,8,{size},{size}] x", f"h = Conv(x, k)  {IMAGES[name]}")
    _check(path, {"x": np.random.default_rng(1).normal(size=(2, 8, size, size)).astype("f4")})


def _check(path: Path, example: dict[str, np.ndarray]) -> None:
    forward = from_onnx(path, lora=GraphLora(rank=2, train_head=False), example=example)
    assert forward.verified.examples
    assert not [node.op_type for node in forward.model.graph if node.domain]
