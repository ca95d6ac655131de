"""Finds the scores before a file's last Softmax or Sigmoid, which losses over logits have to read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from edgepeft_export.forward.graph import Forward
from edgepeft_export.graph.constants import known_number
from edgepeft_export.graph.match import operand, producer_of
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.losses import Loss
from edgepeft_export.verification import Example, GraphRun

_HEADS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
"""Operators that turn scores into probabilities."""

_PASSES = frozenset({"Identity", "Reshape", "Expand", "Unsqueeze", "Cast"})
"""Operators between the parts of a Softmax that converters write out."""


@dataclass(frozen=True)
class Head:
    """The operator between scores and the first output of a graph.

    Attributes:
        kind: the operator.
        scores: its input.
    """

    kind: str
    scores: ir.Value


_RESHAPES = frozenset({"Flatten", "Reshape"})


def probabilities(forward: Forward, loss: Loss) -> Head | None:
    """Return the operator between scores and the first output, if the loss contains it as well."""
    value = forward.model.graph.outputs[0]
    while (node := value.producer()) is not None and node.op_type == "Identity":
        value = operand(node)
    if not loss.reads_scores or node is None or node.domain:
        return None
    head = _written_out(node) or _between_reshapes(node) or _one_node(node)
    return head if head is not None and head.scores.producer() is not None else None


def _one_node(node: ir.Node) -> Head | None:
    scores = node.inputs[0] if node.op_type in _HEADS else None
    if scores is None or scores.shape is None:
        return None
    over = node.attributes.get_int("axis", -1) if node.op_type != "Sigmoid" else -1
    return Head(node.op_type, scores) if over in (-1, rank(scores) - 1, 1) else None


def _between_reshapes(node: ir.Node) -> Head | None:
    """A Softmax of a matrix, as files of older operator sets have it for tensors of more axes."""
    inner = operand(node).producer() if node.op_type in _RESHAPES else None
    head = None if inner is None or inner.domain else _one_node(inner)
    before = None if head is None else head.scores.producer()
    if head is None or before is None or before.op_type not in _RESHAPES:
        return None
    scores, result = operand(before), node.outputs[0]
    if scores.shape is None or result.shape is None or rank(scores) != rank(result):
        return None
    last = dims_of(scores)[-1]
    return Head(head.kind, scores) if isinstance(last, int) and last == dims_of(result)[-1] else None


def _written_out(node: ir.Node) -> Head | None:
    """A Softmax as exponentials divided by their sum, or a Sigmoid as 1 / (1 + exp(-x))."""
    if node.op_type != "Div":
        return None
    above, below = operand(node), operand(node, 1)
    exponential, total = producer_of(above, "Exp"), producer_of(_before_passes(below), "ReduceSum")
    if exponential is not None and total is not None and total.inputs[0] is above:
        return Head("Softmax, written out", operand(exponential))
    added = producer_of(below, "Add")
    for one, other in ((0, 1), (1, 0)) if added is not None and known_number(above) == 1.0 else ():
        assert added is not None
        negated = producer_of(added.inputs[other], "Exp")
        inner = None if negated is None else producer_of(negated.inputs[0], "Neg")
        if known_number(added.inputs[one]) == 1.0 and inner is not None:
            return Head("Sigmoid, written out", operand(inner))
    return None


def _before_passes(value: ir.Value) -> ir.Value:
    while (node := value.producer()) is not None and node.op_type in _PASSES:
        value = operand(node)
    return value


def with_scores(forward: Forward, loss: Loss) -> Forward:
    """A copy whose first output is the scores before its last Softmax or Sigmoid, so that the loss reads them.

    The same graph where there is no such node, or the loss does not read scores.
    """
    head = probabilities(forward, loss)
    if head is None:
        return forward
    model = forward.model.clone()
    first, scores_name = str(model.graph.outputs[0].name), head.scores.name
    scores = next(value for each in model.graph for value in each.outputs if value.name == scores_name)
    model.graph.outputs[:] = [scores, *(value for value in model.graph.outputs if value is not scores)]
    note = (
        f"the file's output {first!r} comes from a {head.kind}: the loss {loss.name} reads {scores.name!r} "
        f"before it, and the model predicts both; name the outputs to choose others"
    )
    return _compared(replace(forward, model=model), str(scores.name), note)


def _compared(forward: Forward, scores: str, note: str) -> Forward:
    """The same with the scores among the outputs of its examples."""
    run = GraphRun(forward.model, [scores])
    fixed = forward.fixed(forward.parameters)
    examples = tuple(
        Example(example.inputs, {**run({**example.inputs, **fixed}), **example.outputs})
        for example in forward.verified.examples
    )
    return replace(
        forward, verified=replace(forward.verified, examples=examples, notes=(*forward.verified.notes, note))
    )
