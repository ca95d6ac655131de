"""The gradient of a node test by edgepeft: of the graph as it is, and as the compiler reads it from a file."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from edgepeft_export.autodiff import differentiate
from edgepeft_export.forward.onnx_source.file import from_onnx
from edgepeft_export.forward.onnx_source.opsets import at_opset
from edgepeft_export.graph.custom_ops import lower
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.expanding.functions import write_older
from edgepeft_export.graph.shapes import infer_shapes
from edgepeft_export.opset import IR_VERSION, OPSET
from edgepeft_export.passes import single_precision
from edgepeft_runtime.notices import EdgepeftWarning
from tests.node_tests.cases import FLOATS, SIZES, Array, NodeTest
from tests.support.onnx_runs import session

Gradients = dict[str, Array | None]
"""By the input's name; ``None`` where edgepeft says that nothing depends on it."""

Way = Callable[[NodeTest, Mapping[int, Array]], Gradients]
"""A way to gradients of the sum of outputs times weights, which are given by the output's position."""


def of_graph(test: NodeTest, weights: Mapping[int, Array]) -> Gradients:
    """Differentiate the graph with all its inputs as inputs, of the sizes they have."""
    return _differentiated(ir.from_proto(test.model), test, weights)


def of_free_sizes(test: NodeTest, weights: Mapping[int, Array]) -> Gradients:
    """Differentiate the graph where only the ranks of its inputs are known."""
    free = onnx.ModelProto()
    free.CopyFrom(test.model)
    for value in free.graph.input:
        if value.name in SIZES.get(test.op, ()):
            continue  # ONNX Runtime reads their length where shapes are inferred
        _free(value, lambda axis, name=value.name: f"{name}_{axis}")
    for value in free.graph.output:
        _free(value, None)
    opset = free.opset_import[0]
    if not opset.domain and opset.version < OPSET:
        model = at_opset(ir.from_proto(free), Path(test.name))
    else:
        model = ir.from_proto(free)
    if not opset.domain and opset.version > OPSET:
        write_older(model, OPSET)
        single_precision(model)
    return _differentiated(model, test, weights)


def of_file(test: NodeTest, weights: Mapping[int, Array]) -> Gradients:
    """Differentiate the graph of a file whose float inputs are trained weights."""
    stored = onnx.ModelProto()
    stored.CopyFrom(test.model)
    del stored.graph.input[:]
    tensors = [numpy_helper.from_array(array, name) for name, array in test.feeds.items()]
    stored.graph.initializer.extend(tensors)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", EdgepeftWarning)
        path = Path(folder) / "model.onnx"
        onnx.save(stored, path)
        model = from_onnx(path, test.targets).model
    made = {value.name: value for value in model.graph.outputs}  # the first output of floats is the first there
    model.graph.outputs[:] = [made[value.name] for value in test.model.graph.output]
    return _differentiated(model, test, weights)


def _free(value: onnx.ValueInfoProto, name: Callable[[int], str] | None) -> None:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        dim.Clear()
        if name is not None:
            dim.dim_param = name(axis)


def _differentiated(model: ir.Model, test: NodeTest, weights: Mapping[int, Array]) -> Gradients:
    infer_shapes(model)
    graph = model.graph
    loss, extra = _loss(graph, weights)
    inputs = {value.name: value for value in graph.inputs}
    found = differentiate(graph, loss, [inputs[name] for name in test.targets])
    graph.outputs[:] = list(found.values())
    lower(model)
    fix_names(model)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)  # before version 4, constants had to be inputs
    results = _run(ir.to_proto(model), {**test.feeds, **extra}) if found else []
    gradients = dict(zip([target.name for target in found], results, strict=True))
    return {name: gradients.get(name) for name in test.targets}


def _loss(graph: ir.Graph, weights: Mapping[int, Array]) -> tuple[ir.Value, dict[str, Array]]:
    """Append the sum of outputs times weights, which become inputs of the graph."""
    parts, feeds = [], {}
    for at, weight in weights.items():
        output = graph.outputs[at]
        assert output.dtype is not None
        feeds[f"weight_{at}"] = np.asarray(weight, output.dtype.numpy())
        given = ir.Value(name=f"weight_{at}", shape=output.shape, type=ir.TensorType(output.dtype))
        graph.inputs.append(given)
        product = _append(graph, "Mul", output, given)
        summed = _append(graph, "ReduceSum", product, keepdims=0)
        parts.append(_append(graph, "Cast", summed, to=TensorProto.FLOAT))
        product.type, product.shape, summed.type = output.type, output.shape, output.type
        summed.shape = ir.Shape([])
    loss = _append(graph, "Sum", *parts)
    for value in (*parts, loss):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return loss, feeds


def _append(graph: ir.Graph, op: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
    node = ir.node(op, inputs, attributes, name=f"loss/{op}")
    graph.append(node)
    return node.outputs[0]


_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def _run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    made = session(model)
    # The compiler brings half and double precision to float32.
    cast = {value.name: _FLOATS.get(value.type) for value in made.get_inputs()}
    results = made.run(None, {name: np.asarray(feeds[name], dtype) for name, dtype in cast.items()})
    return [np.asarray(result, np.float64) for result in results]


WAYS: dict[str, Way] = {"file": of_file, "graph": of_graph, "free sizes": of_free_sizes}
__all__ = ["FLOATS", "WAYS", "Gradients", "Way", "of_file", "of_free_sizes", "of_graph"]
