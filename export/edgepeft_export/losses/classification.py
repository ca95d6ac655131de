"""The common parts of losses over classes: the axis of the classes, labels as rows, and weights of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import WrongClassWeights, WrongLogitsRank
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of, rank
from edgepeft_export.losses.base import Labels, class_labels
from edgepeft_export.losses.emitting import Values, first, known_dim, text
from edgepeft_runtime.errors import BadSetting


def class_axis_of(outputs: Values, axis: int) -> int:
    """Return the axis of the classes, counted from 0.

    Raises:
        WrongLogitsRank: the first output has one axis.
        BadSetting: there is no such axis.
    """
    dims = dims_of(first(outputs))
    if len(dims) < 2:
        raise WrongLogitsRank(
            f"The loss needs scores of shape [batch, ..., classes]; the model returns {text(dims)}.",
            context=None,
            hint="choose another loss, or let the model return a score per class.",
        )
    if not -len(dims) <= axis < len(dims) or axis % len(dims) == 0:
        raise BadSetting("class_axis", axis, f"an axis of the scores {text(dims)} after the first")
    return axis % len(dims)


def class_indices(outputs: Values, axis: int, ignore_index: int, weights: Sequence[float] | None = None) -> Labels:
    """The labels of a loss over classes: their indices. Checks the axis, and one weight per class."""
    dims, axis = dims_of(first(outputs)), class_axis_of(outputs, axis)
    labels = class_labels(dims[:axis] + dims[axis + 1 :], dims[axis], ignore_index)
    if weights is not None:
        _check_weights(weights, dims[axis])
    return labels


def in_rows(emit: Emitter, scores: ir.Value, target: ir.Value, class_axis: int) -> tuple[ir.Value, ir.Value]:
    """Bring scores to [rows, classes] and labels to [rows]."""
    if rank(scores) == 2:
        return scores, target
    return score_rows(emit, scores, class_axis), emit.op("Reshape", target, emit.ints(-1))


def score_rows(emit: Emitter, scores: ir.Value, class_axis: int) -> ir.Value:
    """Bring scores to [rows, classes]."""
    last = classes_last(emit, scores, class_axis)
    return emit.op("Reshape", last, emit.ints(-1, known_dim(scores, class_axis % rank(scores))))


def classes_last(emit: Emitter, scores: ir.Value, class_axis: int) -> ir.Value:
    """Move the axis of the classes to the end. ``scores`` has a known number of axes."""
    size = rank(scores)
    axis = class_axis % size
    if axis == size - 1:
        return scores
    return emit.op("Transpose", scores, perm=[*(at for at in range(size) if at != axis), axis])


def constant_weights(emit: Emitter, weights: Sequence[float] | None) -> ir.Value | None:
    """Weights of classes as a constant [classes]."""
    return None if weights is None else emit.constant(np.asarray(weights, dtype=np.float32))


def counted_labels(emit: Emitter, target: ir.Value, ignore_index: int) -> tuple[ir.Value, ir.Value]:
    """Whether each label counts, as 0 or 1 in float32, and the labels with 0 for those that do not."""
    counts = emit.op("Not", emit.op("Equal", target, emit.scalar(ignore_index, like=target)))
    safe = emit.op("Where", counts, target, emit.scalar(0, like=target))
    return emit.cast(counts, ir.DataType.FLOAT), safe


def _check_weights(weights: Sequence[float], classes: Dim) -> None:
    if len(weights) != classes:
        raise WrongClassWeights(
            f"{len(weights)} class weights for {classes} classes.",
            context=None,
            hint="give one weight per class.",
        )
    if not any(weights):
        raise BadSetting("class_weights", weights, "weights that are not all 0")
