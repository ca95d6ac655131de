"""The bodies of operators that ONNX defines by other operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx
import onnx_ir as ir

from edgepeft_export.graph.definitions import NotDefined, expand_definition
from edgepeft_export.graph.edit import fix_names
from edgepeft_export.graph.expanding.shape_folding import fold_shapes
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.nested.inlining import inline, replace_by
from edgepeft_export.graph.shapes import infer_shapes, is_float


def has_body(node: ir.Node, opset: int) -> bool:
    """Whether ONNX defines the operator of a node by others."""
    schema = _schema(node, opset)
    return schema is not None and bool(_versions(schema, opset))


_REDEFINED: dict[str, tuple[int, Callable[[ir.Node], bool]]] = {
    "GroupNormalization": (21, lambda _: True),  # scale and shift are per channel
    "Mod": (28, lambda node: is_float(operand(node)) and not node.attributes.get_int("fmod", 0)),
}
"""Operators that mean something else since an operator set: that, and for which nodes."""


def write_older(model: ir.Model, older: int) -> list[str]:
    """Bring a model to an older operator set, in place.

    Most operators of later sets have more types and are otherwise the same. Nodes that an older set cannot express are
    replaced by the bodies of their functions.

    Returns:
        The operators that have neither an older form nor a body; empty where the model has been converted.
    """
    opset = model.graph.opset_imports.get("", 1)
    infer_shapes(model)
    while [made for node in _newer(model, opset, older) if (made := _expanded(node, opset))]:
        fix_names(model)
        for node in model.graph:  # of Attention, for one, ONNX infers a size of 0 where it is free
            for output in node.outputs:
                output.shape = None
        fold_shapes(model)
    unknown = sorted({node.op_type for node in _newer(model, opset, older)})
    if not unknown:
        model.graph.opset_imports[""] = older
    return unknown


def _expanded(node: ir.Node, opset: int) -> dict[ir.Value, ir.Value]:
    try:
        return expand_function(node, opset) or expand_definition(node)
    except NotDefined:
        return {}


def _newer(model: ir.Model, opset: int, older: int) -> list[ir.Node]:
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return [node for node in nodes if not _exists(node, opset, older)]


def _exists(node: ir.Node, opset: int, older: int) -> bool:
    """Whether a node means the same in an older operator set. Drops attributes that only repeat a newer default."""
    now, then = _schema(node, opset), _schema(node, older)
    if now is None:
        return True
    since, concerns = _REDEFINED.get(node.op_type, (0, None))
    if then is None or (concerns is not None and opset >= since > older and concerns(node)):
        return False
    for name in set(node.attributes) - set(then.attributes):
        default = now.attributes[name].default_value if name in now.attributes else None
        if default is None or ir.serde.deserialize_attribute(default).value != node.attributes[name].value:
            return False
        del node.attributes[name]
    return bool(len(node.inputs) <= then.max_input and (_takes(then, node) or not _versions(now, opset)))


def _takes(schema: onnx.defs.OpSchema, node: ir.Node) -> bool:
    """Whether an operator has the types of a node's inputs, as far as these are known.

    Numbers of half precision become float32 later.
    """
    typed = zip(node.inputs, schema.inputs, strict=False)
    return all(value is None or value.dtype is None or _word(value.dtype) in formal.types for value, formal in typed)


def _word(dtype: ir.DataType) -> str:
    single = dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    return f"tensor({'float' if single else dtype.name.lower()})"


def expand_function(node: ir.Node, opset: int) -> dict[ir.Value, ir.Value]:
    """Replace a node by the body of its function, where ONNX defines one for it.

    A body depends on the attributes of the node, on which inputs it has, and on their types, which must be known.

    Returns:
        The new value for each output; empty where there is no body.
    """
    function = _function(node, opset)
    if function is None or not function.node:  # it may depend on sizes that are not known
        return {}
    body = _graph(node, function, opset)
    given = [*node.inputs, *[None] * (len(body.inputs) - len(node.inputs))]
    names = [str(value.name) for value in body.outputs]
    made = dict(zip(names, inline(body, given, node), strict=True))
    return replace_by(node, [made.get(name) for name in function.output])


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    if node.domain or not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        return None
    return onnx.defs.get_schema(node.op_type, max_inclusive_version=opset)


def _versions(schema: onnx.defs.OpSchema, opset: int) -> list[int]:
    """The operator sets in which the operator has a body that a graph of ``opset`` can have."""
    versions = schema.context_dependent_function_opset_versions if schema.has_context_dependent_function else []
    return [version for version in (versions or schema.function_opset_versions) if version <= opset]


def _graph(node: ir.Node, function: onnx.FunctionProto, opset: int) -> ir.Graph:
    """The nodes of a function for one call of it, with those outputs that they compute."""
    schema = _schema(node, opset)
    assert schema is not None
    attributes = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    attributes |= {name: ir.serde.serialize_attribute(attribute) for name, attribute in node.attributes.items()}
    given = {name: attribute for name, attribute in attributes.items() if attribute.type}
    made = {*function.input, *(name for inner in function.node for name in inner.output)}
    return ir.serde.deserialize_graph(
        onnx.GraphProto(
            name=node.op_type,
            node=list(_resolved(function.node, given)),
            input=[onnx.ValueInfoProto(name=name) for name in function.input],
            output=[onnx.ValueInfoProto(name=name) for name in function.output if name in made],
        )
    )


def _function(node: ir.Node, opset: int) -> onnx.FunctionProto | None:
    schema = _schema(node, opset)
    versions = [] if schema is None else _versions(schema, opset)
    if schema is None or not versions:
        return None
    if not schema.has_context_dependent_function:
        return onnx.FunctionProto.FromString(_serialized(schema.get_function_with_opset_version(max(versions))))
    types = [b"" if value is None else _type(value) for value in node.inputs]
    call = ir.serde.serialize_node(node).SerializeToString()
    made = schema.get_context_dependent_function_with_opset_version(max(versions), call, types)
    return onnx.FunctionProto.FromString(made)


def _serialized(function: onnx.FunctionProto | bytes) -> bytes:
    return function if isinstance(function, bytes) else function.SerializeToString()


def _type(value: ir.Value) -> bytes:
    content: bytes = ir.serde.serialize_value(value).type.SerializeToString()
    return content


def _resolved(nodes: Iterable[onnx.NodeProto], given: Mapping[str, onnx.AttributeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes in which references to the function's attributes are replaced by these, and left out where it has none."""
    for node in nodes:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        del made.attribute[:]
        for attribute in node.attribute:
            source = given.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if source is None:
                continue
            kept = made.attribute.add()
            kept.CopyFrom(source)
            kept.name = attribute.name
            if kept.HasField("g"):
                inner = list(_resolved(kept.g.node, given))
                del kept.g.node[:]
                kept.g.node.extend(inner)
        yield made
