"""Cross-entropy of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.custom_ops import CROSS_ENTROPY, DOMAIN
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Labels, LossTerms, MeanLoss
from edgepeft_export.losses.classification import class_indices, constant_weights, in_rows
from edgepeft_export.losses.emitting import Values, first, spread_over
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class CrossEntropy(MeanLoss):
    """``torch.nn.CrossEntropyLoss`` with class indices.

    The classes lie on the last axis of the logits, as in transformers. For images (N, C, H, W) they lie on axis 1.
    """

    name: ClassVar[str] = "cross_entropy"
    reads_scores: ClassVar[bool] = True
    label_smoothing: float = setting(
        0.0, "Fraction of the target that is spread evenly over all classes.", minimum=0, below=1
    )
    class_weights: tuple[float, ...] | None = setting(
        None, "Weight of each class, in the order of the labels.", minimum=0, words=("balanced",)
    )
    ignore_index: int = setting(-100, "Label that is ignored, for example padding.")
    class_axis: int = setting(-1, "Axis of the logits that the classes lie on.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [class_indices(outputs, self.class_axis, self.ignore_index, self.class_weights)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        logits, target = in_rows(emit, first(outputs), labels["labels"], self.class_axis)
        weights = spread_over(emit, self.weights_in(labels), labels["labels"])
        return cross_entropy(emit, logits, target, self, weights)


def cross_entropy(
    emit: Emitter, logits: ir.Value, target: ir.Value, settings: CrossEntropy, weights: ir.Value | None = None
) -> LossTerms:
    """The loss of ``logits`` [rows, classes] and ``target`` [rows], as one node; ``weights`` are those of the rows."""
    terms = emit.ops(
        CROSS_ENTROPY,
        logits,
        target,
        constant_weights(emit, settings.class_weights),
        *([] if weights is None else [weights]),
        outputs=2,
        domain=DOMAIN,
        label_smoothing=float(settings.label_smoothing),
        ignore_index=settings.ignore_index,
    )
    for term in terms:
        term.shape = ir.Shape([])
    return LossTerms(*terms)
