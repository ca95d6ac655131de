"""Shape inference of ONNX on a graph in memory, of which only what is new is read back."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

_SMALL = 1000
"""Initializers of at most so many bytes are shown to the inference with their values, which may be shapes."""


def infer(model: ir.Model) -> None:
    """Fill in shapes and dtypes, in place, as ``ShapeInferencePass`` of onnx_ir does.

    That pass reads the whole inferred model again, node by node, which takes most of its time. It is used where a model
    has bodies of loops or functions.
    """
    if model.functions or any(True for _ in model.graph.subgraphs()):
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return
    values = ir.convenience.create_value_mapping(model.graph)
    proto = _without_weights(model, values)
    before = {info.name: info.type for info in (*proto.graph.value_info, *proto.graph.output)}
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception:  # of several classes; the model then stays as it is
        return
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        if info.type != before.get(info.name):
            shape = ir.serde.deserialize_type_proto_for_shape(info.type)
            kind = ir.serde.deserialize_type_proto_for_type(info.type)
            values[info.name].shape = values[info.name].shape if shape is None else shape
            values[info.name].type = values[info.name].type if kind is None else kind


def _without_weights(model: ir.Model, values: Mapping[str, ir.Value]) -> onnx.ModelProto:
    """Return a model in which large initializers are inputs."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    given = dict.fromkeys([*model.graph.inputs, *model.graph.initializers.values()])
    for value in given:
        tensor = value.const_value
        if tensor is not None and value.name in model.graph.initializers:
            value.shape, value.dtype = value.shape or ir.Shape(tensor.shape.numpy()), value.dtype or tensor.dtype
            if tensor.nbytes <= _SMALL:
                proto.graph.initializer.append(ir.serde.serialize_tensor(tensor))
                proto.graph.initializer[-1].name = str(value.name)
        proto.graph.input.append(ir.serde.serialize_value(value))
    proto.graph.node.extend(ir.serde.serialize_node(node) for node in model.graph)
    proto.graph.output.extend(map(ir.serde.serialize_value, model.graph.outputs))
    known = (value for value in values.values() if value.type is not None or value.shape is not None)
    inner = (value for value in known if value not in given and not value.is_graph_output())
    proto.graph.value_info.extend(map(ir.serde.serialize_value, inner))
    return proto
