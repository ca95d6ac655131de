"""Cross-entropy of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import WrongClassWeights, WrongLogitsRank
from edgepeft_export.graph.custom_ops import CROSS_ENTROPY, DOMAIN
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, rank
from edgepeft_export.losses.base import Labels, Loss, LossTerms, class_labels
from edgepeft_export.losses.emitting import Values, first, known_dim, text
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """``torch.nn.CrossEntropyLoss`` with class indices.

    The classes lie on the last axis of the logits, as in transformers. For images (N, C, H, W) they lie on axis 1.
    """

    name: ClassVar[str] = "cross_entropy"
    reads_scores: ClassVar[bool] = True
    label_smoothing: float = setting(
        0.0, "Fraction of the target that is spread evenly over all classes.", minimum=0, below=1
    )
    class_weights: tuple[float, ...] | None = setting(
        None, "Weight of each class, in the order of the labels.", minimum=0
    )
    ignore_index: int = setting(-100, "Label that is ignored, for example padding.")
    class_axis: int = setting(-1, "Axis of the logits that the classes lie on.")

    def labels(self, outputs: Values) -> Sequence[Labels]:
        dims = dims_of(first(outputs))
        if len(dims) < 2:
            raise WrongLogitsRank(
                f"Cross-entropy needs logits of shape [batch, ..., classes]; the model returns {text(dims)}.",
                context=None,
                hint="choose another loss, or let the model return a score per class.",
            )
        if not -len(dims) <= self.class_axis < len(dims):
            raise BadSetting("class_axis", self.class_axis, f"an axis of the logits {text(dims)}")
        axis = self.class_axis % len(dims)
        labels = class_labels(dims[:axis] + dims[axis + 1 :], dims[axis], self.ignore_index)
        if self.class_weights is not None:
            _check_class_weights(self.class_weights, dims[axis])
        return [labels]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        logits, target = _rows(emit, first(outputs), labels["labels"], self.class_axis)
        return cross_entropy(emit, logits, target, self)


def cross_entropy(emit: Emitter, logits: ir.Value, target: ir.Value, settings: CrossEntropy) -> LossTerms:
    """The loss of ``logits`` [rows, classes] and ``target`` [rows], as one node."""
    terms = emit.ops(
        CROSS_ENTROPY,
        logits,
        target,
        _class_weights(emit, settings),
        outputs=2,
        domain=DOMAIN,
        label_smoothing=float(settings.label_smoothing),
        ignore_index=settings.ignore_index,
    )
    for term in terms:
        term.shape = ir.Shape([])
    return LossTerms(*terms)


def _class_weights(emit: Emitter, settings: CrossEntropy) -> ir.Value | None:
    if settings.class_weights is None:
        return None
    return emit.constant(np.asarray(settings.class_weights, dtype=np.float32))


def _rows(emit: Emitter, logits: ir.Value, target: ir.Value, class_axis: int) -> tuple[ir.Value, ir.Value]:
    """Bring logits to [rows, classes] and labels to [rows]."""
    size = rank(logits)
    axis = class_axis % size
    classes = known_dim(logits, axis)
    if size == 2 and axis == 1:
        return logits, target
    if axis != size - 1:
        order = [i for i in range(size) if i != axis] + [axis]
        logits = emit.op("Transpose", logits, perm=order)
    return emit.op("Reshape", logits, emit.ints(-1, classes)), emit.op("Reshape", target, emit.ints(-1))


def _check_class_weights(weights: Sequence[float], classes: Dim) -> None:
    if len(weights) != classes:
        raise WrongClassWeights(
            f"{len(weights)} class weights for {classes} classes.",
            context=None,
            hint="give one weight per class.",
        )
    if not any(weights):
        raise BadSetting("class_weights", weights, "weights that are not all 0")
