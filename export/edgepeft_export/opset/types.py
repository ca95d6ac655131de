"""Element types of every value of a graph, by the signatures of its operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

Signature = tuple[Sequence[str], Sequence[str]]
"""Types of inputs and outputs: a constraint's name (``T``), or a type (``tensor(int64)``); the last may repeat."""

_BY_ATTRIBUTE = ("to", "dtype", "output_datatype")
_ONLY_OUTPUT = {"Constant": "value", "ConstantOfShape": "value"}


@dataclass(frozen=True)
class Types:
    """Element types by value, as far as they are known."""

    known: Mapping[ir.Value | None, str]

    def bindings(self, node: ir.Node, signature: Signature) -> dict[str, str]:
        """Element types of a node by the name of the constraint, and by the type where the signature has one."""
        values = (node.inputs, node.outputs)
        return {
            kind: self.known[value]
            for side, kinds in zip(values, signature, strict=True)
            for value, kind in zip(side, _repeated(kinds, len(side)), strict=True)
            if kind and value in self.known
        }


def types_of(model: ir.Model, contrib: Mapping[str, Signature]) -> Types:
    """Propagate the types from inputs and initializers through all nodes, including those of branches and loops."""
    known: dict[ir.Value | None, str] = {
        value: _word(value.dtype) for value in _given(model.graph) if value.dtype is not None
    }
    types = Types(known)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = _given(attribute.as_graph())
                known.update({value: _word(value.dtype) for value in inner if value.dtype is not None})
        signature = signature_of(node, model.graph.opset_imports.get(node.domain, 1), contrib)
        bound = types.bindings(node, signature) if signature is not None else {}
        kinds = _repeated(signature[1], len(node.outputs)) if signature is not None else [""] * len(node.outputs)
        for value, kind in zip(node.outputs, kinds, strict=True):
            dtype = _by_attribute(node) or _concrete(kind) or bound.get(kind)
            dtype = dtype or (_word(value.dtype) if value.dtype is not None else None)
            if dtype is not None:
                known[value] = dtype
    return types


def signature_of(node: ir.Node, opset: int, contrib: Mapping[str, Signature]) -> Signature | None:
    """The types of an operator's inputs and outputs; ``None`` for one that is not known."""
    if node.domain:
        return contrib.get(f"{node.domain}.{node.op_type}")
    return _onnx_signature(node.op_type, opset)


@cache
def _onnx_signature(op_type: str, opset: int) -> Signature | None:
    if not onnx.defs.has(op_type, max_inclusive_version=opset):
        return None
    schema = onnx.defs.get_schema(op_type, max_inclusive_version=opset)
    sides = []
    for formals in (schema.inputs, schema.outputs):
        # Variables of loops and branches may each have a type, so the name of the constraint says nothing.
        sides.append([formal.type_str if formal.is_homogeneous else "" for formal in formals])
    return sides[0], sides[1]


def _given(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()


def _repeated(kinds: Sequence[str], count: int) -> list[str]:
    return [*kinds, *[kinds[-1] if kinds else ""] * (count - len(kinds))][:count]


def _by_attribute(node: ir.Node) -> str | None:
    for name in _BY_ATTRIBUTE:
        if name in node.attributes and node.attributes[name].type == ir.AttributeType.INT:
            return _word(ir.DataType(node.attributes[name].as_int()))
    tensor = node.attributes.get(_ONLY_OUTPUT.get(node.op_type, ""))
    if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
        return _word(tensor.as_tensor().dtype)
    return "float" if node.op_type == "ConstantOfShape" else None


def _concrete(kind: str) -> str | None:
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else None


def _word(dtype: ir.DataType) -> str:
    """``float16`` for ``FLOAT16``: as onnxruntime spells it."""
    return dtype.name.lower()
