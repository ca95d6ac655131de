"""What a loss is: labels it is fed beside the model's outputs, and two scalars it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from edgepeft_export.errors import UnknownClassCount
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import Dim
from edgepeft_runtime.settings import Named


class LossTerms(NamedTuple):
    """The loss of a batch is ``sum / weight``: two float32 scalars.

    Kept apart, so that batches of different size (a last short one, micro-batches of one step, sequences of different
    length) add up to exactly what one large batch would give.
    """

    sum: ir.Value
    weight: ir.Value


@dataclass(frozen=True)
class Labels:
    """A tensor the loss is fed beside the model's outputs.

    Attributes:
        classes: valid labels are ``0 <= label < classes``; ``None`` where the labels are no classes.
        ignore_index: the label that does not count.
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

    def labels(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        """What the loss has to be fed, given the model's outputs by name, in order."""
        raise NotImplementedError

    def emit(self, emit: Emitter, outputs: Mapping[str, ir.Value], labels: Mapping[str, ir.Value]) -> LossTerms:
        """Append the loss to the graph."""
        raise NotImplementedError


def class_labels(shape: Sequence[Dim], classes: Dim, ignore_index: int | None) -> Labels:
    """int64 labels of a classification over ``classes``, which must be known."""
    if not isinstance(classes, int):
        raise UnknownClassCount(
            "The number of classes is not known: the last axis of the logits has no fixed size.",
            context=None,
            hint="let the model give logits with a fixed number of classes on the last axis.",
        )
    return Labels("labels", ir.DataType.INT64, tuple(shape), classes, ignore_index)
