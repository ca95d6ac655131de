"""A small network written as an .onnx file by hand, for quantizers of ONNX Runtime, and the same in torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn

Batch = dict[str, np.ndarray]

SHAPES = {
    "stem.weight": (8, 1, 3, 3),
    "stem.bias": (8,),
    "block.weight": (16, 8, 1, 1),
    "block.bias": (16,),
    "onnx::MatMul_57": (16, 32),
    "mix.bias": (32,),
    "dense.weight": (32, 32),
    "dense.bias": (32,),
    "head.weight": (10, 32),
    "head.bias": (10,),
}
"""As an exporter leaves it: the matrix of ``mix`` is anonymous, its bias is not."""

_BODY = """
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, stem.weight, stem.bias)
    d = Relu(c)
    e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
    f = Conv <kernel_shape = [1, 1]> (e, block.weight, block.bias)
    g = Relu(f)
    rows = Reshape(g, shape)
    h = Transpose <perm = [0, 2, 1]> (rows)
    i = MatMul(h, onnx::MatMul_57)
    j = Add(i, mix.bias)
    k = Relu(j)
    l = ReduceMean <keepdims = 0> (k, axes)
    m = Gemm <transB = 1> (l, dense.weight, dense.bias)
    n = Relu(m)
    scores = Gemm <transB = 1> (n, head.weight, head.bias)
"""


def arrays() -> dict[str, np.ndarray]:
    """The network's weights."""
    draw = np.random.default_rng(0)
    scales = {name: 1 / np.sqrt(np.prod(shape[1:]) or 1) for name, shape in SHAPES.items()}
    return {name: (draw.normal(size=shape) * scales[name]).astype(np.float32) for name, shape in SHAPES.items()}


def batch(rows: int = 16) -> Batch:
    """Images and labels."""
    draw = np.random.default_rng(1)
    return {"image": draw.random((rows, 1, 8, 8), np.float32), "labels": draw.integers(0, 10, rows)}


def scores(image: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    """The network in torch, with a branch ``<name>.lora_A``, ``<name>.lora_B`` times 2 wherever ``p`` contains one."""

    def conv(x: Tensor, name: str, **settings: Any) -> Tensor:
        y = nn.functional.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **settings)
        if f"{name}.lora_A" not in p:
            return y
        narrow = nn.functional.conv2d(x, p[f"{name}.lora_A"], **settings)
        return y + 2 * nn.functional.conv2d(narrow, p[f"{name}.lora_B"])

    def linear(x: Tensor, name: str, matrix: Tensor) -> Tensor:
        y = x @ matrix + p[f"{name}.bias"]
        return y + 2 * x @ p[f"{name}.lora_A"] @ p[f"{name}.lora_B"] if f"{name}.lora_A" in p else y

    x = nn.functional.max_pool2d(conv(image, "stem", padding=1).relu(), 2)
    x = conv(x, "block").relu().reshape(-1, 16, 16).transpose(1, 2)
    x = linear(x, "mix", p["onnx::MatMul_57"]).relu().mean(1)
    return linear(linear(x, "dense", p["dense.weight"].T).relu(), "head", p["head.weight"].T)


def write(path: Path) -> Path:
    """The network as fp32, opset 18."""
    tokens = {name: name.replace(".", "_").replace("::", "_") for name in SHAPES}  # the parser rejects dots
    body = _BODY
    for name, token in tokens.items():
        body = body.replace(name, token)
    declared = ", ".join(f"float[{', '.join(map(str, SHAPES[name]))}] {token}" for name, token in tokens.items())
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[N, 1, 8, 8] image, {declared}, int64[3] shape, '
        f"int64[1] axes) => (float[N, 10] scores) {{ {body} }}"
    )
    del model.graph.input[1:]
    back = {token: name for name, token in tokens.items()}
    for number, node in enumerate(model.graph.node):
        node.name = f"/{node.op_type}_{number}"
        node.input[:] = [back.get(name, name) for name in node.input]
    constants = {**arrays(), "shape": np.array([-1, 16, 16]), "axes": np.array([1])}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.save(model, path)
    return path


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        self._batches: Iterator[Batch] = iter([{"image": batch(64)["image"]}])

    def get_next(self) -> Batch | None:
        return next(self._batches, None)


def quantized(path: Path, kind: str) -> Path:
    """Quantize the file at ``path`` by ``onnxruntime.quantization`` into a file next to it."""
    out = path.with_name(f"{kind}.onnx")
    if kind.startswith("qdq"):
        weights = QuantType.QUInt8 if "uint8" in kind else QuantType.QInt8
        settings: dict[str, Any] = {
            "activation_type": QuantType.QUInt8,
            "weight_type": weights,
            "per_channel": "channels" in kind,
        }
        quantize_static(path, out, _Reader(), quant_format=QuantFormat.QDQ, **settings)
    elif kind.startswith("dynamic"):
        weights = QuantType.QUInt8 if "uint8" in kind else QuantType.QInt8
        quantize_dynamic(path, out, weight_type=weights, per_channel="channels" in kind)
    else:
        ways: dict[str, dict[str, Any]] = {
            "int4": {"is_symmetric": True},
            "int4-zeros": {"is_symmetric": False, "accuracy_level": 4},
            "int4-qdq": {"is_symmetric": True, "quant_format": QuantFormat.QDQ},
            "int8-blocks": {"is_symmetric": True, "bits": 8},
        }
        quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=16, **ways[kind])
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))
    return out


KINDS = (
    "qdq",
    "qdq-channels",
    "qdq-uint8",
    "dynamic",
    "dynamic-channels",
    "dynamic-uint8",
    "int4",
    "int4-zeros",
    "int4-qdq",
    "int8-blocks",
)


def packed(path: Path) -> dict[str, bytes]:
    """The bytes of every tensor of 4 or 8 bits of a model file, zero points aside."""
    narrow = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4}
    tensors = [
        value.const_value for value in ir.load(path).graph.initializers.values() if value.const_value is not None
    ]
    found = [t for t in tensors if t.dtype in narrow and len(t.shape) > 1 and "zero_point" not in str(t.name)]
    return {str(t.name): t.tobytes() for t in found}
