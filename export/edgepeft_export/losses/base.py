"""The interface of a loss: it reads labels and the model's outputs, and returns two scalars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from edgepeft_export.errors import UnknownClassCount
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim, dims_of
from edgepeft_runtime.settings import Named, setting


class LossTerms(NamedTuple):
    """The loss of a batch is ``sum / weight``: two float32 scalars.

    They are separate so that batches of different size (a last short one, micro-batches of one step, sequences of
    different length) add up to exactly the loss of one large batch.
    """

    sum: ir.Value
    weight: ir.Value


@dataclass(frozen=True)
class Labels:
    """A tensor that the loss reads in addition to the model's outputs.

    Attributes:
        classes: valid labels are ``0 <= label < classes``; ``None`` where the labels are no classes.
        ignore_index: the label that is ignored.
    """

    name: str
    dtype: ir.DataType
    shape: tuple[Dim, ...]
    classes: int | None = None
    ignore_index: int | None = None


@dataclass(frozen=True)
class Loss(Named):
    """Emits a loss.

    A subclass is a frozen dataclass of its settings. Its ``name`` is the ``kind`` of the manifest.
    """

    predicts_tokens: ClassVar[bool] = False
    """Whether a model with this loss can generate text."""
    reads_scores: ClassVar[bool] = False
    """Whether it turns scores into probabilities itself."""
    own_dimensions: ClassVar[Mapping[str, int]] = {}
    """Dimensions that only labels have, with the sizes of a small example."""

    def labels(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        """The labels that the loss reads, in order, for the model's outputs by name."""
        raise NotImplementedError

    def emit(self, emit: Emitter, outputs: Mapping[str, ir.Value], labels: Mapping[str, ir.Value]) -> LossTerms:
        """Append the loss to the graph."""
        raise NotImplementedError


class Elements(NamedTuple):
    """The loss of each element of a batch, float32 ``[batch, ...]``.

    Attributes:
        values: multiplied by their weights.
        weights: the weight of each in the mean, of the same shape; ``None`` for 1.
    """

    values: ir.Value
    weights: ir.Value | None = None


@dataclass(frozen=True)
class MeanLoss(Loss):
    """A loss that is a mean over elements. Examples may have weights, as another label."""

    _: KW_ONLY  # so that the settings of subclasses come first
    example_weights: str | None = setting(
        None, "Name of a label with the weight of each example, as of a column; by default all weigh the same."
    )

    def labels(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        """See ``Loss.labels``."""
        own = list(self.targets(outputs))
        if self.example_weights is not None:
            batch = dims_of(next(iter(outputs.values())))[:1]
            own.append(Labels(self.example_weights, ir.DataType.FLOAT, tuple(batch)))
        return own

    def emit(self, emit: Emitter, outputs: Mapping[str, ir.Value], labels: Mapping[str, ir.Value]) -> LossTerms:
        """See ``Loss.emit``."""
        return mean_of(emit, self.elements(emit, outputs, labels), self.weights_in(labels))

    def targets(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        """The labels without the weights of examples."""
        raise NotImplementedError

    def elements(self, emit: Emitter, outputs: Mapping[str, ir.Value], labels: Mapping[str, ir.Value]) -> Elements:
        """Append the loss of each element to the graph."""
        raise NotImplementedError

    def weights_in(self, labels: Mapping[str, ir.Value]) -> ir.Value | None:
        """The weights of the examples, [batch]; ``None`` for 1."""
        return None if self.example_weights is None else labels[self.example_weights]


def mean_of(emit: Emitter, elements: Elements, example_weights: ir.Value | None = None) -> LossTerms:
    """The mean of elements [batch, ...], each weighted by its example's weight [batch]."""
    values, weights = elements
    if example_weights is None:
        count = emit.cast(emit.op("Size", values), ir.DataType.FLOAT) if weights is None else _sum(emit, weights)
        return LossTerms(_sum(emit, values), count)
    if weights is None:
        each = emit.op("Div", emit.op("Size", values), emit.op("Squeeze", emit.op("Shape", values, start=0, end=1)))
        count = emit.op("Mul", _sum(emit, example_weights), emit.cast(each, ir.DataType.FLOAT))
    else:
        count = _sum(emit, emit.op("Mul", _per_example(emit, weights), example_weights))
    return LossTerms(_sum(emit, emit.op("Mul", _per_example(emit, values), example_weights)), count)


def _per_example(emit: Emitter, values: ir.Value) -> ir.Value:
    """The sums [batch] of elements [batch, ...]."""
    return emit.op("ReduceSum", emit.op("Reshape", values, emit.ints(0, -1)), emit.ints(1), keepdims=0)


def _sum(emit: Emitter, values: ir.Value) -> ir.Value:
    return emit.op("ReduceSum", values, keepdims=0)


def class_labels(shape: Sequence[Dim], classes: Dim, ignore_index: int | None) -> Labels:
    """int64 labels of a classification over ``classes``, which must be known."""
    if not isinstance(classes, int):
        raise UnknownClassCount(
            "The number of classes is not known: the last axis of the logits has no fixed size.",
            context=None,
            hint="let the model give logits with a fixed number of classes on the last axis.",
        )
    return Labels("labels", ir.DataType.INT64, tuple(shape), classes, ignore_index)
