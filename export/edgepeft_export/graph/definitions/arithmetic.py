"""Arithmetic that older operator sets have for integers only."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgepeft_export.graph.definitions.algebra import Term
from edgepeft_export.graph.definitions.registry import NotDefined, definition
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import is_float


@definition("Mod")
def modulo(node: ir.Node, given: Sequence[ir.Value | None], emit: Emitter) -> Sequence[ir.Value]:
    """C's fmod, plus y where the two signs differ: the remainder has the sign of y. Of floats since opset 28."""
    x, y = given
    assert x is not None and y is not None
    fmod = node.attributes.get_int("fmod", 0)
    if fmod or not is_float(x):
        raise NotDefined("it is an operator of integers, or has the sign of its dividend", "set fmod to 0")
    rest = Term(x, emit).apply("Mod", y, fmod=1)
    differs = (rest * Term(y, emit)).apply("Less", emit.scalar(0.0, like=x))
    return (emit.op("Where", differs.value, (rest + Term(y, emit)).value, rest.value),)
