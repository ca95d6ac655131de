"""Finds the scores before a file's last Softmax or Sigmoid, which losses over logits have to read."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from edgepeft_export.forward.graph import Forward
from edgepeft_export.graph.match import operand
from edgepeft_export.graph.shapes import rank
from edgepeft_export.losses import Loss
from edgepeft_export.verification import Example, GraphRun

_HEADS = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
"""Operators that turn scores into probabilities."""


def probabilities(forward: Forward, loss: Loss) -> ir.Node | None:
    """The node that turns scores into the first output, where the loss does so again."""
    first = forward.model.graph.outputs[0]
    node = first.producer()
    if not loss.reads_scores or node is None or node.domain or node.op_type not in _HEADS:
        return None
    scores = node.inputs[0]
    if scores is None or scores.shape is None or scores.producer() is None:
        return None
    over = node.attributes.get_int("axis", -1) if node.op_type != "Sigmoid" else -1
    return node if over in (-1, rank(scores) - 1, 1) else None


def with_scores(forward: Forward, loss: Loss) -> Forward:
    """A copy whose first output is the scores before its last Softmax or Sigmoid, so that the loss reads them.

    The same graph where there is no such node, or the loss does not read scores.
    """
    node = probabilities(forward, loss)
    if node is None:
        return forward
    model = forward.model.clone()
    first, scores_name = str(model.graph.outputs[0].name), operand(node).name
    scores = next(value for each in model.graph for value in each.outputs if value.name == scores_name)
    model.graph.outputs[:] = [scores, *(value for value in model.graph.outputs if value is not scores)]
    note = (
        f"the file's output {first!r} comes from a {node.op_type}: the loss {loss.name} reads {scores.name!r} "
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
