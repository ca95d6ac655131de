"""The interface of a loss: it reads labels and the model's outputs, and returns two scalars."""

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

    def labels(self, outputs: Mapping[str, ir.Value]) -> Sequence[Labels]:
        """The labels that the loss reads, in order, for the model's outputs by name."""
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
