"""The operators of a cross-entropy, which a loss emits as one node."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgepeft_export.graph.custom_ops import CROSS_ENTROPY, DOMAIN, STOP_GRADIENT
from edgepeft_export.graph.edit import remove_node, replace_value
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.match import operands, present
from edgepeft_export.graph.shapes import dtype_of, infer_shapes
from edgepeft_export.losses.base import LossTerms


@dataclass(frozen=True)
class Entropy:
    """The settings of a ``CROSS_ENTROPY`` node."""

    label_smoothing: float
    ignore_index: int

    @classmethod
    def of(cls, node: ir.Node) -> Entropy:
        """Read them from the node."""
        return cls(node.attributes["label_smoothing"].as_float(), node.attributes["ignore_index"].as_int())


@dataclass(frozen=True)
class Weights:
    """Factors of the loss of a row, and of its weight in the mean: of its class [classes], and its own [rows]."""

    classes: ir.Value | None = None
    rows: ir.Value | None = None


@dataclass(frozen=True)
class Scores:
    """Logarithms of probabilities: ``values - offset``.

    Attributes:
        values: [rows, classes].
        offset: [rows, 1], or ``None`` for 0.
    """

    values: ir.Value
    offset: ir.Value | None = None

    def relative(self, emit: Emitter, part: ir.Value, weight: ir.Value | None = None) -> ir.Value:
        """A weighted sum of each row's logarithms, from that of its ``values`` [rows, 1] and the sum of the weights."""
        if self.offset is None:
            return part
        offset = self.offset if weight is None else emit.op("Mul", self.offset, weight)
        return emit.op("Sub", part, offset)


def cross_entropies(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of losses in a graph."""
    return [node for node in graph if node.domain == DOMAIN and node.op_type == CROSS_ENTROPY]


def write_cross_entropies(model: ir.Model) -> ir.Model:
    """Replace each node by operators, in place."""
    for node in cross_entropies(model.graph):
        emit = Emitter(model.graph, scope=node.name or "loss")
        logits, target = operands(node, 2)
        scores = Scores(emit.op("LogSoftmax", logits, axis=1))
        replace_terms(
            node, terms_of(emit, Entropy.of(node), scores, target, Weights(present(node, 2), present(node, 3)))
        )
    model.graph.sort()  # the new nodes were appended at the end
    infer_shapes(model)
    return model


def replace_terms(node: ir.Node, terms: LossTerms) -> None:
    """Replace the node of a loss by the operators of its definition."""
    for old, new in zip(node.outputs, terms, strict=True):
        replace_value(old, new)
    remove_node(node)


def lean_scores(emit: Emitter, logits: ir.Value) -> Scores:
    """Logarithms of probabilities of which no second copy exists: the gradient is the exponential of the same values.

    The largest logit cancels out of loss and gradient, so no gradient crosses it.
    """
    largest = emit.op("ReduceMax", logits, emit.ints(1), keepdims=1)
    shifted = emit.op("Sub", logits, emit.op(STOP_GRADIENT, largest, domain=DOMAIN))
    shifted.shape = logits.shape
    exponentials = emit.op("Exp", shifted)
    exponentials.shape = logits.shape
    return Scores(shifted, emit.op("Log", emit.op("ReduceSum", exponentials, emit.ints(1), keepdims=1)))


def terms_of(emit: Emitter, settings: Entropy, scores: Scores, target: ir.Value, weights: Weights) -> LossTerms:
    """The loss of rows of scores with the labels ``target`` [rows]."""
    values, smoothing, class_weights = scores.values, settings.label_smoothing, weights.classes
    counts = emit.op("Not", emit.op("Equal", target, emit.scalar(settings.ignore_index, like=target)))
    safe = emit.op("Where", counts, target, emit.scalar(0, like=target))
    counted = emit.cast(counts, dtype_of(values))
    if weights.rows is not None:
        counted = emit.op("Mul", counted, weights.rows)
    weight = counted if class_weights is None else emit.op("Mul", counted, emit.op("Gather", class_weights, safe))
    picked = emit.op("GatherElements", values, emit.op("Unsqueeze", safe, emit.ints(1)), axis=1)
    total = _weighted(emit, scores.relative(emit, picked), weight)
    if smoothing:
        # The mean over the classes, so that smoothing by 1 would be the uniform distribution.
        fraction = emit.op("Div", emit.scalar(smoothing, like=values), _columns(emit, values))
        smooth = _weighted(emit, _over_classes(emit, scores, class_weights), counted)
        sharp = emit.op("Mul", total, emit.scalar(1.0 - smoothing, like=values))
        total = emit.op("Add", sharp, emit.op("Mul", smooth, fraction))
    return LossTerms(total, emit.op("ReduceSum", weight, keepdims=0))


def _over_classes(emit: Emitter, scores: Scores, class_weights: ir.Value | None) -> ir.Value:
    """The sum of each row's logarithms, weighted, [rows, 1]."""
    values, total = scores.values, _columns(emit, scores.values)
    if class_weights is not None:
        values, total = emit.op("Mul", values, class_weights), emit.op("ReduceSum", class_weights, keepdims=0)
    return scores.relative(emit, emit.op("ReduceSum", values, emit.ints(1), keepdims=1), total)


def _weighted(emit: Emitter, log_p: ir.Value, weight: ir.Value) -> ir.Value:
    product = emit.op("Mul", emit.op("Squeeze", log_p, emit.ints(1)), weight)
    return emit.op("Neg", emit.op("ReduceSum", product, keepdims=0))


def _columns(emit: Emitter, values: ir.Value) -> ir.Value:
    size = emit.op("Shape", values, start=1, end=2)
    return emit.op("Squeeze", emit.cast(size, dtype_of(values)))
