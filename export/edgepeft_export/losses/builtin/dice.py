"""The overlap of areas, for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import WrongLogitsRank
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.classification import class_indices, counted_labels
from edgepeft_export.losses.emitting import Values, first, known_dim, targets, text
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class Dice(MeanLoss):
    """1 - (2 Σ p y + smooth) / (Σ p + Σ y + smooth) over the pixels of each channel of ``[batch, channels, ...]``.

    The mean over examples and channels (Milletari et al., 3DV 2016, without squares). Labels are masks of the output's
    shape or, with ``exclusive``, the class of each pixel.
    """

    name: ClassVar[str] = "dice"
    reads_scores: ClassVar[bool] = True
    smooth: float = setting(1.0, "Added to both sides of the fraction.", above=0)
    exclusive: bool = setting(False, "A pixel has one class: softmax over channels, and indices of classes as labels.")
    ignore_index: int = setting(-100, "Label that is ignored, for example padding.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        dims = dims_of(first(outputs))
        if len(dims) < 3:
            raise WrongLogitsRank(
                f"Dice needs scores of shape [batch, channels, ...]; the model returns {text(dims)}.",
                context=None,
                hint="let the model return a score per channel and pixel.",
            )
        return [class_indices(outputs, 1, self.ignore_index) if self.exclusive else targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        sides = self._exclusive if self.exclusive else _independent
        p, y = sides(emit, first(outputs), labels["labels"])
        smooth = emit.scalar(self.smooth, like=p)
        common = emit.op("Mul", _area(emit, emit.op("Mul", p, y)), emit.scalar(2.0, like=p))
        both = emit.op("Add", _area(emit, p), _area(emit, y))
        overlap = emit.op("Div", emit.op("Add", common, smooth), emit.op("Add", both, smooth))
        return Elements(emit.op("Sub", emit.scalar(1.0, like=p), overlap))

    def _exclusive(self, emit: Emitter, scores: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
        counted, safe = counted_labels(emit, emit.op("Reshape", target, emit.ints(0, -1)), self.ignore_index)
        classes = emit.ints(known_dim(scores, 1))
        y = emit.op("OneHot", safe, classes, emit.constant(np.asarray([0, 1], np.float32)), axis=1)
        counted = emit.op("Unsqueeze", counted, emit.ints(1))
        p = _pixels(emit, emit.op("Softmax", scores, axis=1))
        return emit.op("Mul", p, counted), emit.op("Mul", y, counted)


def _independent(emit: Emitter, scores: ir.Value, target: ir.Value) -> tuple[ir.Value, ir.Value]:
    return _pixels(emit, emit.op("Sigmoid", scores)), _pixels(emit, target)


def _pixels(emit: Emitter, values: ir.Value) -> ir.Value:
    """[batch, channels, pixels]."""
    return emit.op("Reshape", values, emit.ints(0, 0, -1))


def _area(emit: Emitter, values: ir.Value) -> ir.Value:
    return emit.op("ReduceSum", values, emit.ints(2), keepdims=0)
