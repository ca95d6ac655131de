"""Counts the iterations of loops that end when a counter reaches a bound, as exporters write ``while i < n``."""

from __future__ import annotations

import onnx_ir as ir

from edgepeft_export.graph.constants import known_number
from edgepeft_export.graph.match import operand, present, producer_of
from edgepeft_export.graph.nested.inlining import Inserter


def count_iterations(node: ir.Node) -> bool:
    """Give a ``Loop`` that nothing but such a counter ends the number of its iterations, in place.

    Its condition is ``i + 1 < n`` with a state i and a bound n that it does not change, so it runs ``n - start`` times;
    at least once where it begins without a condition. Returns whether it was one.
    """
    body, trips = node.attributes["body"].as_graph(), present(node, 0)
    found = _counter(body)
    if found is None or (trips is not None and known_number(trips) is None):
        return False
    state, bound = found
    start, condition = node.inputs[2 + state], present(node, 1)
    once = condition is None or known_number(condition) == 1.0
    if start is None or not (once or _is_less(condition, start, bound)):
        return False
    insert = Inserter(node)
    numbers = known_number(start), known_number(bound)
    least, most = int(once), known_number(trips)
    if numbers[0] is not None and numbers[1] is not None:
        count = insert.constant(int(min(max(numbers[1] - numbers[0], least), most or 2**31)))
    else:
        count = insert.op("Max", insert.op("Sub", bound, start), insert.constant(least))
        count = count if most is None else insert.op("Min", count, insert.constant(int(most)))
        count = insert.op("Reshape", count, insert.constant([]))
        count.shape = ir.Shape([])
    node.replace_input_with(0, count)
    node.replace_input_with(1, insert.constant(True))
    on = ir.node("Identity", [body.inputs[1]], name=f"{node.name or 'Loop'}/on")
    on.outputs[0].type, on.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    body.append(on)
    body.outputs[0] = on.outputs[0]
    return True


def _counter(body: ir.Graph) -> tuple[int, ir.Value] | None:
    """The number of the state that counts, and its bound."""
    node = _source(body.outputs[0]).producer()
    if node is None or node.domain or node.op_type not in ("Less", "Greater"):
        return None
    values = [_source(operand(node, index)) for index in range(2)]
    counted, bound = values if node.op_type == "Less" else values[::-1]
    added = producer_of(counted, "Add")
    if added is None or (bound.graph is body and not bound.is_initializer()):
        return None
    for one, other in ((0, 1), (1, 0)):
        before = _source(operand(added, other))
        if _number(operand(added, one)) == 1.0 and before in body.inputs[2:]:
            state = body.inputs.index(before) - 2
            return (state, bound) if _source(body.outputs[1 + state]) is counted else None
    return None


def _is_less(condition: ir.Value | None, start: ir.Value, bound: ir.Value) -> bool:
    """Whether the loop begins only where the counter is below its bound."""
    node = None if condition is None else _source(condition).producer()
    if node is None or node.domain or node.op_type not in ("Less", "Greater"):
        return False
    values = [_source(operand(node, index)) for index in range(2)]
    low, high = values if node.op_type == "Less" else values[::-1]
    return _same(low, _source(start)) and _same(high, bound)


def _same(first: ir.Value, second: ir.Value) -> bool:
    number = known_number(first)
    return first is second or (number is not None and number == known_number(second))


def _number(value: ir.Value) -> float | None:
    """A constant, perhaps in another type."""
    while (node := value.producer()) is not None and node.op_type in ("Identity", "Cast", "CastLike"):
        value = operand(node)
    return known_number(value)


def _source(value: ir.Value) -> ir.Value:
    while (node := producer_of(value, "Identity")) is not None:
        value = operand(node)
    return value
