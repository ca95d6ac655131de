"""Static shapes and dtypes of values."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgepeft_runtime.errors import EdgepeftError

Dim = int | str | None
"""A size, the name of a symbolic size, or ``None`` for an unknown one."""


class UnknownRank(EdgepeftError, code="unknown-rank"):
    """A tensor of which not even the number of dimensions is known."""

    def __init__(self, value: ir.Value) -> None:
        producer = value.producer()
        node = f"{producer.op_type} (node {producer.name})" if producer is not None else "a graph input"
        super().__init__(
            f"The number of dimensions of tensor {value.name!r} is not known.",
            context=f"It comes from {node}, and a gradient has to cross it.",
            hint="declare the shapes of the model's inputs, or run onnx.shape_inference on the model first.",
        )


_SMALL = 1000
"""Initializers of at most so many bytes are shown to the inference with their values, which may be shapes."""


def infer_shapes(model: ir.Model) -> None:
    """Fill in the shapes and dtypes that ONNX can infer, in place."""
    for node in model.graph:
        if node.op_type == "STFT" and "onesided" not in node.attributes and not node.domain:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)  # the default, which ONNX's inference has as 0
    _infer(model)


def infer_missing_shapes(model: ir.Model) -> None:
    """The same after an edit of a graph whose shapes were inferred: not where the edit named the shapes of all."""
    values = ir.convenience.create_value_mapping(model.graph).values()
    if not all(_is_known(value) for value in values):
        infer_shapes(model)


def _is_known(value: ir.Value) -> bool:
    return value.type is not None and value.shape is not None and None not in dims_of(value)


def _infer(model: ir.Model) -> None:
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


def dims_of(value: ir.Value) -> list[Dim]:
    """The dimensions of ``value``; raises ``UnknownRank`` where not even their number is known."""
    if value.shape is None:
        raise UnknownRank(value)
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def rank(value: ir.Value) -> int:
    """The number of dimensions of ``value``."""
    return len(dims_of(value))


def static_dims(value: ir.Value) -> list[int] | None:
    """The dimensions of ``value`` where all of them are known, else ``None``."""
    if value.shape is None:
        return None
    dims = [dim for dim in value.shape if isinstance(dim, int)]
    return dims if len(dims) == len(value.shape) else None


def repeated(value: ir.Value, times: int) -> ir.Shape | None:
    """The shape with ``times`` as many indices along the first dimension; ``None`` where the rank is unknown."""
    if value.shape is None:
        return None
    first, *others = dims_of(value)
    return ir.Shape([times * first if isinstance(first, int) else None, *others])


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The size that two sizes broadcast to; ``None`` where it is uncertain."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    # A known size other than 1 wins over a name: the name must be that size or 1.
    return next((dim for dim in (a, b) if isinstance(dim, int)), None)


def dtype_of(value: ir.Value) -> ir.DataType:
    """The dtype of a value, which must be known."""
    assert value.dtype is not None, f"the dtype of tensor {value.name!r} is not known"
    return value.dtype


def is_float(value: ir.Value) -> bool:
    """Whether a value is known to be made of floating point numbers."""
    return value.dtype is not None and value.dtype.is_floating_point()


def forget_names(graph: ir.Graph | Sequence[ir.Node], known: Collection[Dim]) -> None:
    """Make the named sizes of a body's values unknown, except known names and those of ``at_most``, in place.

    A name means one size, and onnxruntime reuses memory by it; a slice may have another size in each iteration. The
    bound of a name of ``at_most`` is what memory is predicted from.
    """

    def kept(dim: Dim) -> Dim:
        return dim if isinstance(dim, int) or dim in known or largest_size(dim) is not None else None

    inputs = graph.inputs if isinstance(graph, ir.Graph) else ()
    for value in (*inputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([kept(dim) for dim in dims_of(value)])


def input_names(graph: ir.Graph) -> set[Dim]:
    """The names of the free sizes of a graph's inputs."""
    return {dim for value in graph.inputs if value.shape is not None for dim in dims_of(value)}


def at_most(size: int, of: str) -> str:
    """The name of a symbolic size that is at most ``size``. Sizes of different things have different names."""
    return f"at_most_{size}_of_{re.sub(r'[^A-Za-z0-9]+', '_', of)}"


def largest_size(dim: object) -> int | None:
    """The bound in a name of ``at_most``; ``None`` for other names."""
    bound = re.match(r"at_most_(\d+)_of_", str(dim))
    return None if bound is None else int(bound[1])
