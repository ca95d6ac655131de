"""Ensures that values which depend on trained tensors alone are computed now rather than at each run.

Pattern: nodes that read only initializers, one of them trained: transposes of LoRA's matrices, sums of a weight and its
sparse changes, the encoder of a prompt. Algebra: ``f(c) = c'``, with f computed by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgepeft_export.graph.constants import new_initializer

_QUANTIZED = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


def fold_constants(model: ir.Model, trained: Collection[ir.Value]) -> set[ir.Value]:
    """Replace values computed from initializers, one of them trained, by their content, in place.

    Nodes that read a quantized tensor stay, because their result would be a dequantized one.

    Returns:
        The new initializers.
    """
    values = _computed(model.graph, trained)
    results = _results(model, [str(value.name) for value in values])
    return {_put(model.graph, value, array) for value, array in zip(values, results, strict=True)}


def _computed(graph: ir.Graph, trained: Collection[ir.Value]) -> list[ir.Value]:
    """The last values of each chain of nodes that depend on initializers alone."""
    constant = set(trained)
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if any(value in constant for value in inputs) and all(v in constant or _plain(v) for v in inputs):
            constant.update(node.outputs)
    return [value for node in graph for value in node.outputs if value in constant and _is_last(value, constant)]


def _plain(value: ir.Value) -> bool:
    return value.is_initializer() and value.dtype not in _QUANTIZED


def _is_last(value: ir.Value, constant: Collection[ir.Value]) -> bool:
    return not value.is_graph_output() and any(use.node.outputs[0] not in constant for use in value.uses())


def _results(model: ir.Model, names: Sequence[str]) -> list[NDArray[np.generic]]:
    if not names:
        return []
    part = model.clone()
    del part.graph.outputs[:]
    made = {value.name: value for node in part.graph for value in node.outputs}
    part.graph.outputs.extend(made[name] for name in names)
    common.RemoveUnusedNodesPass()(part)
    del part.graph.inputs[:]
    load_all(part.graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(part).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(names, {}))


def load_all(graph: ir.Graph) -> None:
    """Read the tensors still in ``weights.bin``, so that the model does not refer to a file of the bundle."""
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)


def _put(graph: ir.Graph, value: ir.Value, array: NDArray[np.generic]) -> ir.Value:
    node = value.producer()
    assert node is not None
    stem = f"{node.inputs[0].name}.T" if node.op_type == "Transpose" and node.inputs[0] is not None else value.name
    value.name = None
    new = new_initializer(graph, str(stem), array)
    value.replace_all_uses_with(new)
    return new
