"""Writes sequences of tensors as these tensors, where it is known which they are: no gradient crosses a sequence.

Scripted models collect the steps of a loop in a list, and exporters split tensors into sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.constants import known_ints, known_number
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.match import operand, present, producer_of
from edgepeft_export.graph.nested.inlining import Inserter
from edgepeft_export.graph.shapes import dims_of, rank

Elements = list[ir.Value]


def resolve_sequences(model: ir.Model) -> bool:
    """Replace all sequences whose elements are known, in place. Returns whether anything changed.

    A sequence to which a loop appends one tensor an iteration becomes a tensor that the loop makes of them.
    """
    loops = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if _is(node, "Loop")]
    changed = sum(map(_stacked, loops)) > 0
    known: dict[ir.Value, Elements] = {}
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        handle = _HANDLERS.get(node.op_type) if not node.domain else None
        if handle is not None and (handle is not _same or operand(node) in known):
            changed |= handle(node, known)
    return changed


def _is(node: ir.Node, op_type: str) -> bool:
    return node.op_type == op_type and not node.domain


def _source(value: ir.Value) -> ir.Value:
    while (node := producer_of(value, "Identity")) is not None:
        value = operand(node)
    return value


def _index(node: ir.Node, position: int) -> int | None:
    number = known_number(present(node, position))
    return None if number is None else int(number)


def _empty(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    known[node.outputs[0]] = []
    return False


def _constructed(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    known[node.outputs[0]] = [value for value in node.inputs if value is not None]
    return False


def _same(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    known[node.outputs[0]] = known[operand(node)]
    return False


def _inserted(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    elements = known.get(operand(node))
    at = _index(node, 2) if present(node, 2) is not None else len(elements or ())
    if elements is not None and at is not None:
        at = at if at >= 0 else at + len(elements)
        known[node.outputs[0]] = [*elements[:at], operand(node, 1), *elements[at:]]
    return False


def _erased(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    elements, at = known.get(operand(node)), _index(node, 1) if present(node, 1) is not None else -1
    if elements is not None and at is not None:
        known[node.outputs[0]] = [value for index, value in enumerate(elements) if index != at % len(elements)]
    return False


def _split(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    """The parts of a tensor, of known sizes along the axis."""
    x, axis = operand(node), node.attributes.get_int("axis", 0)
    if x.shape is None:
        return False
    size = dims_of(x)[axis]
    wanted = known_ints(present(node, 1)) if present(node, 1) is not None else [1]
    if not wanted or not isinstance(size, int):
        return False
    one = present(node, 1) is None or not len(dims_of(operand(node, 1)))
    sizes = [min(wanted[0], size - start) for start in range(0, size, wanted[0])] if one else wanted
    insert = Inserter(node)
    parts = ir.node("Split", [x, insert.constant(sizes)], {"axis": axis}, num_outputs=len(sizes))
    parts.name = f"{node.name or 'SplitToSequence'}/Split"
    node.prepend(parts)
    made = list(parts.outputs)
    for value in made:
        value.type = x.type
    if present(node, 1) is None and not node.attributes.get_int("keepdims", 1):
        made = [insert.op("Squeeze", value, insert.constant([axis])) for value in made]
    known[node.outputs[0]] = made
    return True


def _at(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    elements, at = known.get(operand(node)), _index(node, 1)
    if elements is None or at is None or not -len(elements) <= at < len(elements):
        return False
    _replace(node, Inserter(node).op("Identity", elements[at]))
    return True


def _length(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    elements = known.get(operand(node))
    if elements is None:
        return False
    insert = Inserter(node)
    _replace(node, insert.op("Identity", insert.constant(len(elements))))
    return True


def _joined(node: ir.Node, known: dict[ir.Value, Elements]) -> bool:
    elements, axis = known.get(operand(node)), node.attributes["axis"].as_int()
    if not elements:
        return False
    insert = Inserter(node)
    if node.attributes.get_int("new_axis", 0):
        elements = [insert.op("Unsqueeze", value, insert.constant([axis])) for value in elements]
    _replace(node, insert.op("Concat", *elements, axis=axis))
    return True


_HANDLERS: dict[str, Callable[[ir.Node, dict[ir.Value, Elements]], bool]] = {
    "SequenceEmpty": _empty,
    "SequenceConstruct": _constructed,
    "Identity": _same,
    "SequenceInsert": _inserted,
    "SequenceErase": _erased,
    "SplitToSequence": _split,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "ConcatFromSequence": _joined,
}


def _replace(node: ir.Node, value: ir.Value) -> None:
    replace_value(node.outputs[0], value)
    remove_node(node)


@dataclass(frozen=True)
class _Appended:
    """A sequence of a loop to which each iteration appends one tensor.

    Attributes:
        state: the number of the state that it is.
        tensor: of the body.
        readers: of the whole sequence, after the loop.
    """

    state: int
    tensor: ir.Value
    readers: Sequence[ir.Node]


def _stacked(node: ir.Node) -> bool:
    """Let a loop return such a sequence as one tensor, in place."""
    found = next((each for state in range(len(node.inputs) - 2) if (each := _appended(node, state))), None)
    if found is None:
        return False
    body, state = node.attributes["body"].as_graph(), found.state
    tensor = found.tensor
    if tensor.producer() is None or tensor.graph is not body or tensor.is_graph_output():
        copy = ir.node("Identity", [tensor], name=f"{node.name or 'Loop'}/appended")
        body.append(copy)
        copy.outputs[0].type, copy.outputs[0].shape = tensor.type, tensor.shape
        tensor = copy.outputs[0]
    body.outputs[:] = [*(value for index, value in enumerate(body.outputs) if index != 1 + state), tensor]
    for use in list(body.inputs[2 + state].uses()):
        remove_node(use.node)
    body.inputs[:] = [value for index, value in enumerate(body.inputs) if index != 2 + state]
    inputs = [value for index, value in enumerate(node.inputs) if index != 2 + state]
    made = ir.Node("", "Loop", inputs, node.attributes.values(), num_outputs=len(node.outputs), name=node.name)
    node.prepend(made)
    others = [value for index, value in enumerate(node.outputs) if index != state]
    for old, new in zip(others, made.outputs, strict=False):
        replace_value(old, new)
    for reader in found.readers:
        _read_stacked(reader, made.outputs[-1], tensor)
    remove_node(node)
    _stacked(made)
    return True


def _appended(node: ir.Node, state: int) -> _Appended | None:
    body, first = node.attributes["body"].as_graph(), node.inputs[2 + state]
    if first is None or producer_of(_source(first), "SequenceEmpty") is None:
        return None
    taken, insert = body.inputs[2 + state], producer_of(body.outputs[1 + state], "SequenceInsert")
    if insert is None or insert.inputs[0] is not taken or len(taken.uses()) != 1 or present(insert, 2) is not None:
        return None
    result = node.outputs[state]
    readers = [use.node for use in result.uses()]
    if result.is_graph_output() or insert.outputs[0].uses() or not all(_can_read(each, insert) for each in readers):
        return None
    return _Appended(state, operand(insert, 1), readers)


def _can_read(reader: ir.Node, insert: ir.Node) -> bool:
    if _is(reader, "SequenceAt"):
        return True
    axis = reader.attributes.get_int("axis", 0) if _is(reader, "ConcatFromSequence") else -1
    return axis == 0 or (_is(reader, "ConcatFromSequence") and operand(insert, 1).shape is not None)


def _read_stacked(reader: ir.Node, stacked: ir.Value, tensor: ir.Value) -> None:
    """Compute what a reader of the sequence returns from its tensors side by side along a first axis."""
    stacked.type = tensor.type
    insert = Inserter(reader)
    if _is(reader, "SequenceAt"):
        _replace(reader, insert.op("Gather", stacked, operand(reader, 1), axis=0))
        return
    axis, is_new = reader.attributes["axis"].as_int(), bool(reader.attributes.get_int("new_axis", 0))
    if axis:
        count = rank(tensor)
        axis %= count + is_new
        order = [*range(1, axis + 1), 0, *range(axis + 1, count + 1)]
        moved = ir.node("Transpose", [stacked], {"perm": order}, name=f"{reader.name or reader.op_type}/Transpose")
        reader.prepend(moved)
        stacked = moved.outputs[0]
        stacked.type = tensor.type
    if is_new:
        _replace(reader, insert.op("Identity", stacked))
        return
    before, after = insert.op("Shape", stacked, end=axis), insert.op("Shape", stacked, start=axis + 2)
    for sizes in (before, after):
        sizes.type = ir.TensorType(ir.DataType.INT64)
    _replace(reader, insert.op("Reshape", stacked, insert.op("Concat", before, insert.constant([-1]), after, axis=0)))
