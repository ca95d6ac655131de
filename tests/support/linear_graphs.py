"""Forward graphs of one linear layer, and their train step run by onnxruntime, for tests of losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgepeft_export.compile import Compiled, compile_step
from edgepeft_export.forward import Forward
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.losses import Loss
from edgepeft_export.optimizers import SGD

FEATURES, CLASSES = 3, 5

_SHAPES = {
    "rows": ("batch, {f}", "batch, {c}", "MatMul(x, w)"),
    "tokens": ("batch, sequence, {f}", "batch, sequence, {c}", "MatMul(x, w)"),
    "images": ("batch, {f}, height, width", "batch, {c}, height, width", "Conv(x, kernel)"),
}


@dataclass(frozen=True)
class Result:
    """One micro-batch: the two terms of the loss, and the gradient of the mean loss by parameter."""

    sum: float
    weight: float
    gradients: Mapping[str, NDArray[np.float32]]

    @property
    def loss(self) -> float:
        return self.sum / self.weight


def linear(kind: str = "rows", *, classes: int = CLASSES, second: bool = False) -> Forward:
    """``logits = x w + b`` over rows, tokens or pixels; with ``second``, ``squares = logits²`` is another output."""
    given, made, product = (text.format(f=FEATURES, c=classes) for text in _SHAPES[kind])
    bias = f"{classes}" if kind != "images" else f"{classes}, 1, 1"
    kernel = (
        "t = Transpose <perm = [1, 0]> (w)\n axes = Constant <value_ints = [2, 3]> ()\n kernel = Unsqueeze(t, axes)"
    )
    outputs = f"float[{made}] logits" + (f", float[{made}] squares" if second else "")
    text = f"""
        <ir_version: 10, opset_import: ["": 20]>
        linear (float[{given}] x, float[{FEATURES}, {classes}] w, float[{bias}] b) => ({outputs}) {{
            {kernel if kind == "images" else ""}
            h = {product}
            logits = Add(h, b)
            {"squares = Mul(logits, logits)" if second else ""}
        }}
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    infer_shapes(model)
    draw = np.random.default_rng(0)
    shapes = {"w": (FEATURES, classes), "b": tuple(int(size) for size in bias.split(","))}
    parameters = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Forward(model, ("x",), parameters)


def torch_logits(x: Tensor, parameters: Mapping[str, Tensor], kind: str = "rows") -> Tensor:
    """What ``linear`` computes."""
    if kind == "images":
        return torch.einsum("nfhw,fc->nchw", x, parameters["w"]) + parameters["b"]
    return x @ parameters["w"] + parameters["b"]


def leaves(forward: Forward) -> dict[str, Tensor]:
    """The parameters as torch tensors that collect a gradient."""
    return {name: torch.from_numpy(array.copy()).requires_grad_() for name, array in forward.parameters.items()}


def compiled(forward: Forward, loss: Loss) -> Compiled:
    """All graphs, with an arbitrary optimizer."""
    return compile_step(forward, loss, SGD())


def run(step: Compiled, batch: Mapping[str, Tensor]) -> Result:
    """Run ``train.onnx`` on a batch."""
    graph = step.graphs["train"]
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    fed = {**{name: tensor.numpy() for name, tensor in batch.items()}, **step.parameters}
    names = [output.name for output in session.get_outputs()]
    values = dict(zip(names, session.run(names, fed), strict=True))
    total, weight = float(values["loss_sum"]), float(values["loss_weight"])
    gradients: dict[str, NDArray[np.float32]] = {}
    for bucket in step.buckets:
        gradients |= _unflatten(values[bucket.gradient], bucket.members, bucket.shapes)
    scale = weight or 1.0
    return Result(total, weight, {name: array / scale for name, array in gradients.items()})


def _unflatten(
    flat: NDArray[np.float32], names: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    ends = np.cumsum([prod(shape) for shape in shapes])[:-1]
    return {name: part.reshape(shape) for name, part, shape in zip(names, np.split(flat, ends), shapes, strict=True)}


def expected_of(
    forward: Forward, kind: str, oracle: Callable[[Tensor, Tensor], Tensor], batch: Mapping[str, Tensor]
) -> tuple[float, dict[str, NDArray[np.float32]]]:
    """Return torch's loss of logits and labels, and its gradient by parameter."""
    parameters = leaves(forward)
    loss = oracle(torch_logits(batch["x"], parameters, kind), batch["labels"])
    loss.backward()
    return loss.item(), {name: tensor.grad.numpy() for name, tensor in parameters.items() if tensor.grad is not None}
