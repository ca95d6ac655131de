"""Cross-entropies in which labels that are predicted well count less (Lin et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.classification import class_indices, constant_weights, counted_labels, in_rows
from edgepeft_export.losses.emitting import Values, first, targets
from edgepeft_runtime.settings import setting

_SMALLEST = 1e-12
"""Bound of 1 - p, whose power below 1 has no gradient at 0."""


@dataclass(frozen=True)
class Focal(MeanLoss):
    """Focal loss of one class per label: w (1 - p)^gamma (-log p), a mean over the labels that count."""

    name: ClassVar[str] = "focal"
    reads_scores: ClassVar[bool] = True
    gamma: float = setting(2.0, "Exponent of 1 - p; 0 is the cross-entropy.", minimum=0, option="focal-gamma")
    class_weights: tuple[float, ...] | None = setting(
        None, "Weight of each class, in the order of the labels.", minimum=0, words=("balanced",)
    )
    ignore_index: int = setting(-100, "Label that is ignored, for example padding.")
    class_axis: int = setting(-1, "Axis of the logits that the classes lie on.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [class_indices(outputs, self.class_axis, self.ignore_index, self.class_weights)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        target = labels["labels"]
        scores, flat = in_rows(emit, first(outputs), target, self.class_axis)
        counted, safe = counted_labels(emit, flat, self.ignore_index)
        log_p = emit.op("LogSoftmax", scores, axis=1)
        picked = emit.op("GatherElements", log_p, emit.op("Unsqueeze", safe, emit.ints(1)), axis=1)
        picked = emit.op("Squeeze", picked, emit.ints(1))
        missed = emit.op("Sub", emit.scalar(1.0, like=picked), emit.op("Exp", picked))
        weight, weights = counted, constant_weights(emit, self.class_weights)
        if weights is not None:
            weight = emit.op("Mul", counted, emit.op("Gather", weights, safe))
        values = emit.op("Mul", _focused(emit, missed, emit.op("Neg", picked), self.gamma), weight)
        shape = emit.op("Shape", target)
        return Elements(emit.op("Reshape", values, shape), emit.op("Reshape", counted, shape))


@dataclass(frozen=True)
class BinaryFocal(MeanLoss):
    """``torchvision.ops.sigmoid_focal_loss``, a mean over labels of the output's shape, each 0 to 1."""

    name: ClassVar[str] = "binary_focal"
    reads_scores: ClassVar[bool] = True
    gamma: float = setting(2.0, "Exponent of 1 - p; 0 is the cross-entropy.", minimum=0, option="focal-gamma")
    alpha: float | None = setting(
        None,
        "Weight of positive labels, with 1 - alpha for negative ones; by default both weigh 1.",
        minimum=0,
        maximum=1,
        option="focal-alpha",
    )

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, y = first(outputs), labels["labels"]
        one, minus = emit.scalar(1.0, like=x), emit.op("Neg", x)
        negative = emit.op("Sub", one, y)
        entropy = emit.op("Sub", emit.op("Softplus", x), emit.op("Mul", x, y))
        missed = emit.op(
            "Add", emit.op("Mul", emit.op("Sigmoid", x), negative), emit.op("Mul", emit.op("Sigmoid", minus), y)
        )
        values = _focused(emit, missed, entropy, self.gamma)
        if self.alpha is not None:
            positive = emit.op("Mul", y, emit.scalar(self.alpha, like=y))
            weight = emit.op("Add", positive, emit.op("Mul", negative, emit.scalar(1.0 - self.alpha, like=y)))
            values = emit.op("Mul", values, weight)
        return Elements(values)


def _focused(emit: Emitter, missed: ir.Value, entropy: ir.Value, gamma: float) -> ir.Value:
    """``entropy`` times the probability of everything but the label, to the power of gamma."""
    if gamma == 0.0:
        return entropy
    bounded = emit.op("Max", missed, emit.scalar(_SMALLEST, like=missed))
    return emit.op("Mul", emit.op("Pow", bounded, emit.scalar(gamma, like=bounded)), entropy)
