"""Losses whose labels are a probability for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of, rank
from edgepeft_export.losses.base import Elements, Labels, MeanLoss, class_labels
from edgepeft_export.losses.classification import class_axis_of, class_indices, classes_last, constant_weights
from edgepeft_export.losses.emitting import Values, first, targets
from edgepeft_runtime.settings import setting

_SMALLEST = 1e-30
"""Bound of probabilities in a logarithm: those of 0 count 0."""


@dataclass(frozen=True)
class SoftCrossEntropy(MeanLoss):
    """``torch.nn.CrossEntropyLoss`` with probabilities of the output's shape as labels."""

    name: ClassVar[str] = "soft_cross_entropy"
    reads_scores: ClassVar[bool] = True
    label_smoothing: float = setting(
        0.0, "Fraction of the target that is spread evenly over all classes.", minimum=0, below=1
    )
    class_weights: tuple[float, ...] | None = setting(
        None, "Weight of each class, in the order of the labels.", minimum=0, words=("balanced",)
    )
    class_axis: int = setting(-1, "Axis of the logits that the classes lie on.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        if self.class_weights is not None or self.label_smoothing:
            class_indices(outputs, self.class_axis, -100, self.class_weights)  # the number of classes must be known
        class_axis_of(outputs, self.class_axis)
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        log_p, y = _sides(emit, first(outputs), labels["labels"], self.class_axis)
        if self.label_smoothing:
            classes = class_labels([], dims_of(first(outputs))[self.class_axis], None).classes
            assert classes is not None
            sharp = emit.op("Mul", y, emit.scalar(1.0 - self.label_smoothing, like=y))
            y = emit.op("Add", sharp, emit.scalar(self.label_smoothing / classes, like=y))
        weights = constant_weights(emit, self.class_weights)
        product = emit.op("Mul", log_p, y)
        weighted = product if weights is None else emit.op("Mul", product, weights)
        return Elements(emit.op("Neg", _over_classes(emit, weighted)))


@dataclass(frozen=True)
class KLDivergence(MeanLoss):
    """``torch.nn.KLDivLoss`` of the softmax of scores from labels, which are probabilities of the output's shape.

    With a temperature T, the scores are divided by T and the loss is multiplied by T², so that it can be added to one
    of classes (Hinton et al., 2015); the labels are a teacher's probabilities at this temperature.
    """

    name: ClassVar[str] = "kl_divergence"
    reads_scores: ClassVar[bool] = True
    temperature: float = setting(1.0, "Divisor of the scores, whose square multiplies the loss.", above=0)
    class_axis: int = setting(-1, "Axis of the logits that the classes lie on.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        class_axis_of(outputs, self.class_axis)
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        log_p, y = _sides(emit, first(outputs), labels["labels"], self.class_axis, self.temperature)
        log_y = emit.op("Log", emit.op("Max", y, emit.scalar(_SMALLEST, like=y)))
        values = _over_classes(emit, emit.op("Mul", y, emit.op("Sub", log_y, log_p)))
        if self.temperature != 1.0:
            values = emit.op("Mul", values, emit.scalar(self.temperature**2, like=values))
        return Elements(values)


def _sides(
    emit: Emitter, scores: ir.Value, labels: ir.Value, class_axis: int, temperature: float = 1.0
) -> tuple[ir.Value, ir.Value]:
    """Logarithms of probabilities and labels, with the classes on the last axis."""
    size = rank(scores)
    last = classes_last(emit, scores, class_axis)
    if temperature != 1.0:
        last = emit.op("Mul", last, emit.scalar(1.0 / temperature, like=last))
    return emit.op("LogSoftmax", last, axis=size - 1), classes_last(emit, labels, class_axis)


def _over_classes(emit: Emitter, values: ir.Value) -> ir.Value:
    return emit.op("ReduceSum", values, emit.ints(-1), keepdims=0)
