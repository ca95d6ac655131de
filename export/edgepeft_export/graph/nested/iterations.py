"""Loops whose length only the run knows: a ``Loop`` or a ``Scan`` with explicit inputs, and back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from edgepeft_export.graph.constants import is_frozen, known, known_number, new_initializer
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.match import present
from edgepeft_export.graph.nested.bodies import captured, give_inputs, isolate, rejoin
from edgepeft_export.graph.nested.counting import count_iterations
from edgepeft_export.graph.nested.inlining import Inserter, replace_by
from edgepeft_export.graph.shapes import Dim, dims_of, infer_shapes
from edgepeft_export.opset import IR_VERSION
from edgepeft_runtime.bundle.graphfile import MAX_TRIPS

_SETTINGS = ("counted", "states", "sliced")


class StateChangesSize(Exception):
    """A state of a loop has another size after an iteration, so no tensor has the states of all iterations."""

    def __init__(self, before: list[Dim], after: list[Dim]) -> None:
        super().__init__(f"{before} before an iteration and {after} after it")


@dataclass(frozen=True)
class Iterations:
    """The parts of a ``Repeat``; see ``edgepeft_export.graph.custom_ops.REPEAT``.

    Attributes:
        counted: 2 for a ``Loop``, whose first inputs are a number of iterations and a condition, 0 for a ``Scan``.
        states: number of tensors that an iteration replaces.
        sliced: number of tensors of which an iteration reads a slice.
        axes, backwards: of the slices, and whether the last one comes first.
        made_axes, made_backwards: of what the iterations make, in the order of the outputs after the states.
    """

    counted: int
    states: int
    sliced: int
    axes: tuple[int, ...]
    backwards: tuple[int, ...]
    made_axes: tuple[int, ...]
    made_backwards: tuple[int, ...]

    @classmethod
    def of(cls, node: ir.Node) -> Iterations:
        """Those of a ``Repeat``."""
        counted, states, sliced = (node.attributes[name].as_int() for name in _SETTINGS)
        lists = (node.attributes.get_ints(name, ()) for name in _LISTS)
        return cls(counted, states, sliced, *(tuple(given) for given in lists))

    @classmethod
    def of_loop(cls, node: ir.Node) -> Iterations:
        """Those of a ``Loop``, or of a ``Scan`` whose slices have known ranks."""
        body = node.attributes["body"].as_graph()
        if node.op_type == "Loop":
            states = len(node.inputs) - 2
            made = len(body.outputs) - states - 1
            return cls(2, states, 0, (), (), (0,) * made, (0,) * made)
        sliced = node.attributes["num_scan_inputs"].as_int()
        states = len(node.inputs) - sliced
        made = len(body.outputs) - states
        axes = _ints(node, "scan_input_axes", sliced)
        ranks = [0 if value is None else len(dims_of(value)) for value in node.inputs[states:]]
        positive = tuple(axis % rank for axis, rank in zip(axes, ranks, strict=True))
        backwards = _ints(node, "scan_input_directions", sliced)
        outputs = _ints(node, "scan_output_axes", made), _ints(node, "scan_output_directions", made)
        return cls(0, states, sliced, positive, backwards, *outputs)

    def write(self, node: ir.Node) -> None:
        """Make these the attributes of a ``Repeat``."""
        numbers = dict(zip(_SETTINGS, (self.counted, self.states, self.sliced), strict=True))
        lists = dict(zip(_LISTS, (self.axes, self.backwards, self.made_axes, self.made_backwards), strict=True))
        node.attributes.update({name: ir.AttrInt64(name, number) for name, number in numbers.items()})
        node.attributes.update({name: ir.AttrInt64s(name, given) for name, given in lists.items()})

    @property
    def shared_from(self) -> int:
        """The first input, of the node and of the body, that all iterations share."""
        return self.counted + self.states + self.sliced


_LISTS = ("axes", "backwards", "made_axes", "made_backwards")


def _ints(node: ir.Node, name: str, count: int) -> tuple[int, ...]:
    given = node.attributes.get_ints(name, None)
    return (0,) * count if given is None else tuple(given)


def repeat(node: ir.Node, op_type: str, domain: str) -> dict[ir.Value, ir.Value]:
    """Replace a ``Loop`` or a ``Scan`` by a node that reads what its body reads, except constants.

    Returns:
        The new value for each output; empty where a value is no tensor, or its rank is not known.

    Raises:
        StateChangesSize: a state does.
    """
    new = _with_inputs(node, op_type, domain)
    return {} if new is None else replace_by(node, new.outputs)


def as_scan(node: ir.Node) -> dict[ir.Value, ir.Value]:
    """Replace a ``Loop`` that runs as often as a number says by a ``Scan`` over the numbers below it.

    Devices refuse a ``Loop`` without a constant limit, because it might never end.

    Returns:
        The new value for each output; empty where the node stays: it is no such ``Loop``, or has a constant limit.

    Raises:
        StateChangesSize: a state does.
    """
    if node.op_type != "Loop" or node.domain or has_limit(node) or not runs_on(node):
        return {}
    count = present(node, 0)
    new = None if count is None else _with_inputs(node, "Repeat", "")
    if new is None or count is None:
        return {}
    iterations, body = Iterations.of(new), new.attributes["body"].as_graph()
    write, shared = Inserter(new), iterations.shared_from
    scalar = write.op("Reshape", count, write.constant([]))
    numbers = write.op("Range", write.constant(0), scalar, write.constant(1))
    at, goes_on = body.inputs[:2]
    goes_on.replace_all_uses_with(new_initializer(body, "goes_on", np.asarray(True)))
    inputs = [*new.inputs[2:shared], numbers, *new.inputs[shared:]]
    body.inputs[:] = [*body.inputs[2:shared], at, *body.inputs[shared:]]
    del body.outputs[0]
    other = ir.Node("", "Repeat", inputs, new.attributes.values(), num_outputs=len(new.outputs), name=new.name)
    replace(iterations, counted=0, sliced=1, axes=(0,), backwards=(0,)).write(other)
    new.prepend(other)
    for old, made in zip(new.outputs, other.outputs, strict=True):
        made.type, made.shape = old.type, old.shape
    remove_node(new)
    replaced = replace_by(node, other.outputs)
    written = write_loop(other)
    return {old: written.get(made, made) for old, made in replaced.items()}


def limit_loops(model: ir.Model) -> None:
    """Replace every such ``Loop`` of a model, in place. One that stays is refused where it has to be differentiated."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph, recursive=lambda _: True, reverse=True)):
        if node.op_type == "Loop" and not node.domain:
            count_iterations(node)
        with suppress(StateChangesSize):
            as_scan(node)


def has_limit(node: ir.Node) -> bool:
    """Whether devices accept a loop: a ``Scan``, or a ``Loop`` with a constant number of iterations."""
    count = known_number(present(node, 0)) if node.op_type == "Loop" else 0
    return count is not None and count <= MAX_TRIPS


def runs_on(node: ir.Node) -> bool:
    """Whether nothing but the number of iterations ends a ``Loop``."""
    condition, body = present(node, 1), node.attributes["body"].as_graph()
    if condition is not None and known_number(condition) != 1.0:
        return False
    value: ir.Value | None = body.outputs[0]
    while value is not None and (producer := value.producer()) is not None and producer.op_type in ("Identity", "Cast"):
        value = producer.inputs[0]
    array = known(value)
    return value is body.inputs[1] or (array is not None and bool(array.all()))


def _with_inputs(node: ir.Node, op_type: str, domain: str) -> ir.Node | None:
    """The new node, in front of the old one; ``None`` where a value is no tensor, or its rank is not known."""
    values = [value for value in node.inputs if value is not None]
    if any(not isinstance(value.type, ir.TensorType) or value.shape is None for value in values):
        return None
    iterations = Iterations.of_loop(node)
    body = node.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
    shared = [value for value in captured(body) if not is_frozen(value)]
    if any(not isinstance(value.type, ir.TensorType) or value.shape is None for value in shared):
        return None
    give_inputs(body, shared)
    assert node.graph is not None
    if domain:
        node.graph.opset_imports.setdefault(domain, 1)
    body.opset_imports.update(node.graph.opset_imports)
    _settle_shapes(node, body, iterations, node.graph)
    count = len(body.outputs) - (1 if iterations.counted else 0)
    inputs = [*node.inputs, *shared]
    new = ir.Node(domain, op_type, inputs, [ir.AttrGraph("body", body)], num_outputs=count, name=node.name)
    iterations.write(new)
    node.prepend(new)
    _type_outputs(new, body, iterations)
    return new


def _settle_shapes(node: ir.Node, body: ir.Graph, iterations: Iterations, graph: ir.Graph) -> None:
    """Give the inputs of a body their types and shapes, and infer those within."""
    first = iterations.counted
    for inner, outer in zip(body.inputs[first:], node.inputs[first:], strict=False):
        assert outer is not None
        inner.type, inner.shape = outer.type, outer.shape
    for inner, dtype in zip(body.inputs[:first], (ir.DataType.INT64, ir.DataType.BOOL), strict=False):
        inner.type, inner.shape = ir.TensorType(dtype), ir.Shape([])
    start = first + iterations.states
    for inner, axis in zip(body.inputs[start : iterations.shared_from], iterations.axes, strict=True):
        dims = dims_of(inner)
        inner.shape = ir.Shape([*dims[:axis], *dims[axis + 1 :]])
    twins = isolate(body)
    infer_shapes(ir.Model(body, ir_version=IR_VERSION))
    rejoin(body, twins, graph)
    outputs = body.outputs[1 if first else 0 :]
    for before, after in zip(body.inputs[first:start], outputs, strict=False):
        if after.shape is not None and _differs(dims_of(before), dims_of(after)):
            raise StateChangesSize(dims_of(before), dims_of(after))
        after.type, after.shape = before.type, before.shape


def _differs(before: list[Dim], after: list[Dim]) -> bool:
    known = [(a, b) for a, b in zip(before, after, strict=False) if isinstance(a, int) and isinstance(b, int)]
    return len(before) != len(after) or any(a != b for a, b in known)


def _type_outputs(new: ir.Node, body: ir.Graph, iterations: Iterations) -> None:
    """Types and shapes of the outputs; how many iterations there are is not known."""
    outputs = body.outputs[1 if iterations.counted else 0 :]
    for outer, inner in zip(new.outputs, outputs, strict=True):
        outer.type, outer.shape = inner.type, inner.shape
    made = zip(new.outputs[iterations.states :], iterations.made_axes, strict=True)
    for outer, axis in made:
        if outer.shape is not None:
            outer.shape = with_axis(dims_of(outer), axis, None)


def with_axis(dims: list[Dim], axis: int, size: Dim) -> ir.Shape:
    """The shape of slices of these dimensions, stacked along an axis."""
    at = axis % (len(dims) + 1)
    return ir.Shape([*dims[:at], size, *dims[at:]])


def write_loop(node: ir.Node) -> dict[ir.Value, ir.Value]:
    """Replace a node with explicit inputs by a ``Loop`` or a ``Scan``, in place. Returns the new outputs by the old."""
    iterations, body = Iterations.of(node), node.attributes["body"].as_graph()
    first_shared = iterations.shared_from
    for inner, outer in zip(list(body.inputs[first_shared:]), node.inputs[first_shared:], strict=True):
        assert outer is not None
        inner.replace_all_uses_with(outer)
    del body.inputs[first_shared:]
    node.attributes.clear()
    attributes: list[ir.Attr] = [ir.AttrGraph("body", body)]
    if not iterations.counted:
        attributes += [
            ir.AttrInt64("num_scan_inputs", iterations.sliced),
            ir.AttrInt64s("scan_input_axes", iterations.axes),
            ir.AttrInt64s("scan_input_directions", iterations.backwards),
            ir.AttrInt64s("scan_output_axes", iterations.made_axes),
            ir.AttrInt64s("scan_output_directions", iterations.made_backwards),
        ]
    op_type = "Loop" if iterations.counted else "Scan"
    given = [present(node, index) for index in range(first_shared)]
    new = ir.Node("", op_type, given, attributes, num_outputs=len(node.outputs), name=f"{node.name}/{op_type}")
    node.prepend(new)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        replace_value(old, made)
    written = dict(zip(node.outputs, new.outputs, strict=True))
    remove_node(node)
    return written
