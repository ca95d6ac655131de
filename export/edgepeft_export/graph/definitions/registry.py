"""Operators that ONNX does not define by others, defined here: a table of functions that write a node's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.nested.inlining import inline, replace_by

Definition = Callable[[ir.Node, Sequence[ir.Value | None], Emitter], Sequence[ir.Value | None]]
"""Writes the operators of a node, and returns its outputs.

The values are those of the node's inputs. The node itself is read for attributes and for constant inputs.
"""

DEFINITIONS: dict[str, Definition] = {}
"""By operator, those outside of ONNX's domain with theirs before it."""


class NotDefined(Exception):
    """A definition does not cover how an operator is used. The text is the reason, with a comma and a way out."""

    def __init__(self, reason: str, way_out: str) -> None:
        super().__init__(reason)
        self.reason, self.way_out = reason, way_out


def definition(op_type: str) -> Callable[[Definition], Definition]:
    """Register the definition of an operator, with its domain before it where that is not ONNX's."""

    def register(function: Definition) -> Definition:
        DEFINITIONS[op_type] = function
        return function

    return register


def expand_definition(node: ir.Node) -> dict[ir.Value, ir.Value]:
    """Replace a node by the operators that define it. Returns the new value for each output; empty where none do.

    Raises:
        NotDefined: the definition does not cover how the operator is used.
    """
    function = DEFINITIONS.get(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
    if function is None or node.graph is None:
        return {}
    given = [None if value is None else _stand_in(value) for value in node.inputs]
    inputs = [value for value in given if value is not None]
    body = ir.Graph(inputs, [], nodes=[], opset_imports=dict(node.graph.opset_imports), name=node.op_type)
    made = function(node, given, Emitter(body))
    body.outputs[:] = [value for value in made if value is not None]
    inlined = iter(inline(body, [value for value in node.inputs if value is not None], node))
    return replace_by(node, [None if value is None else next(inlined) for value in made])


def _stand_in(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, shape=value.shape, type=value.type)
