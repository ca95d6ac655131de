"""Cases of gradient rules, and their ONNX graphs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]

Function = Callable[..., Any]
"""A function of torch tensors that returns one or several."""


@dataclass(frozen=True)
class Random:
    """A float input that trains, drawn at random from an interval."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0


@dataclass(frozen=True)
class Given:
    """A float input that trains, with these values."""

    values: Array


@dataclass(frozen=True)
class Constant:
    """An initializer, as exporters fold into the graph. It needs no gradient."""

    values: Array


Input = Random | Given | Constant | Array | None
"""An array is a graph input of its own dtype that does not train; ``None`` is left out."""


def x(*shape: int, low: float = -2.0, high: float = 2.0) -> Random:
    return Random(shape, low, high)


def ints(*numbers: int) -> Constant:
    return Constant(np.array(numbers, dtype=np.int64))


@dataclass(frozen=True)
class Case:
    """One use of an operator.

    Attributes:
        op: the operator.
        inputs: its inputs, in order.
        torch: the same function in torch, of the inputs that are there; gives the float outputs, one or several.
        attributes: of the node.
        opset: of the graph.
        outputs: how many outputs the node has.
        fixed: indices of inputs whose shape stays known in the graphs with symbolic dimensions.
        fixed_axes: axes of the first input that stay known there.
        differences: whether finite differences make sense (not at kinks and ties).
        float32_only: ONNX Runtime computes it in float32 also where it takes float64.
    """

    op: str
    inputs: Sequence[Input]
    torch: Function
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    fixed: tuple[int, ...] = ()
    fixed_axes: tuple[int, ...] = ()
    differences: bool = True
    float32_only: bool = False

    def label(self) -> str:
        shapes = "x".join("_" if i is None else str(list(values_shape(i))).replace(" ", "") for i in self.inputs)
        return f"{self.op}-{shapes}-{dict(self.attributes)}-{self.opset}".replace(" ", "")


def values_shape(given: Random | Given | Constant | Array) -> tuple[int, ...]:
    if isinstance(given, Random):
        return given.shape
    return given.values.shape if isinstance(given, Given | Constant) else given.shape


def draw(case: Case, dtype: type) -> list[Array | None]:
    """The values of all inputs; the same on every call."""
    random = np.random.default_rng(zlib.crc32(case.label().encode()))
    arrays: list[Array | None] = []
    for given in case.inputs:
        if isinstance(given, Random):
            arrays.append(random.uniform(given.low, given.high, given.shape).astype(dtype))
        else:
            values = given.values if isinstance(given, Given | Constant) else given
            if values is not None and np.issubdtype(values.dtype, np.floating):
                values = values.astype(dtype)
            arrays.append(values)
    return arrays


def trains(case: Case) -> list[int]:
    """Return the indices of the inputs whose gradients are computed."""
    return [index for index, given in enumerate(case.inputs) if isinstance(given, Random | Given)]


def forward_model(case: Case, dtype: type, naming: str) -> onnx.ModelProto:
    """The operator, and the loss Σ output · weight.

    Dimensions are known ("static"), all of different names ("symbolic"), or named by their size ("named").
    """
    arrays = draw(case, dtype)
    names = ["" if array is None else f"i{index}" for index, array in enumerate(arrays)]
    outputs = [f"o{index}" for index in range(case.outputs)]
    inputs, initializers = [], []
    for index, array in enumerate(arrays):
        if array is None:
            continue
        if isinstance(case.inputs[index], Constant):
            initializers.append(numpy_helper.from_array(array, names[index]))
        else:
            inputs.append(_declared(case, index, array, names[index], naming))
    float_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node(case.op, names, outputs, name="node", **case.attributes)
    nodes, parts = [node], []
    made = _outputs(case, node, inputs, initializers, dtype)
    for index, output in enumerate(made):
        if output.type.tensor_type.elem_type != float_type:
            continue
        weight = onnx.ValueInfoProto()
        weight.CopyFrom(output)
        weight.name = f"w{index}"
        inputs.append(weight)
        nodes.append(helper.make_node("Mul", [f"o{index}", f"w{index}"], [f"m{index}"], name=f"weigh{index}"))
        nodes.append(helper.make_node("ReduceSum", [f"m{index}"], [f"s{index}"], name=f"sum{index}", keepdims=0))
        parts.append(f"s{index}")
    nodes.append(helper.make_node("Sum", parts, ["loss"], name="loss"))
    results = [*made, helper.make_tensor_value_info("loss", float_type, [])]
    return _model(nodes, inputs, results, initializers, case.opset)


def _outputs(
    case: Case, node: onnx.NodeProto, inputs: list[Any], initializers: list[Any], dtype: type
) -> list[onnx.ValueInfoProto]:
    """Return the outputs of the node, with their types by shape inference."""
    model = _model([node], inputs, [], initializers, case.opset)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    made = {info.name: info for info in inferred.graph.value_info}
    if all(name in made and made[name].type.tensor_type.HasField("shape") for name in node.output):
        return [made[name] for name in node.output]
    # Where inference knows nothing, exporters declare the type: here that of torch's outputs, sizes unknown.
    outputs, _ = from_torch(case, np.float32, None)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return [
        helper.make_tensor_value_info(name, kind, [None] * output.ndim)
        for name, output in zip(node.output, outputs, strict=True)
    ]


def _declared(case: Case, index: int, array: Array, name: str, naming: str) -> onnx.ValueInfoProto:
    shape: list[int | str] = []
    for axis, size in enumerate(array.shape):
        known = naming == "static" or index in case.fixed or (index == 0 and axis in case.fixed_axes)
        shape.append(size if known else f"{name}d{axis}" if naming == "symbolic" else f"size{size}")
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def _model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any], opset: int
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "case", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def to_ir(model: onnx.ModelProto) -> ir.Model:
    """Return the model with inferred shapes."""
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))


def from_torch(case: Case, dtype: type, weights: Sequence[Array] | None) -> tuple[list[Array], list[Array]]:
    """Return outputs, and gradients of Σ output · weight for the trained inputs, by default with ``loss_weights``."""
    tensors = [None if array is None else torch.from_numpy(np.array(array)) for array in draw(case, dtype)]
    wanted = [tensors[index].requires_grad_() for index in trains(case)]  # type: ignore[union-attr]
    made = case.torch(*[tensor for tensor in tensors if tensor is not None])
    outputs = list(made) if isinstance(made, tuple | list) else [made]
    if weights is None:
        weights = loss_weights([tuple(output.shape) for output in outputs], dtype)
    loss = sum((output * torch.from_numpy(weight)).sum() for output, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [output.detach().numpy() for output in outputs], [gradient.numpy() for gradient in gradients]


def loss_weights(shapes: Sequence[tuple[int, ...]], dtype: type) -> list[Array]:
    random = np.random.default_rng(7)
    return [
        np.asarray(random.uniform(0.5, 1.5, shape) * random.choice((-1, 1), shape), dtype=dtype) for shape in shapes
    ]
