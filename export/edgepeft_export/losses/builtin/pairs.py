"""Losses of pairs of embeddings and a label: ``[batch, 2, width]``, or two outputs ``[batch, width]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.embeddings import check_embeddings, cosine, distance, embeddings
from edgepeft_export.losses.emitting import Values
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class CosineEmbedding(MeanLoss):
    """``torch.nn.CosineEmbeddingLoss``: 1 - cos for a label above 0, max(cos - margin, 0) for one of 0 or -1."""

    name: ClassVar[str] = "cosine_embedding"
    margin: float = setting(0.0, "Similarity of a dissimilar pair that is small enough.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return _label_per_pair(outputs, self.name)

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, (y,) = embeddings(emit, outputs, 2)
        similarity = cosine(emit, x, y)
        similar, dissimilar = _sides(emit, labels["labels"])
        near = emit.op("Sub", emit.scalar(1.0, like=similarity), similarity)
        far = emit.op("Relu", emit.op("Sub", similarity, emit.scalar(self.margin, like=similarity)))
        return Elements(emit.op("Add", emit.op("Mul", similar, near), emit.op("Mul", dissimilar, far)))


@dataclass(frozen=True)
class CosineSimilarity(MeanLoss):
    """The squared difference of the cosine similarity of a pair and its label, a score from -1 to 1."""

    name: ClassVar[str] = "cosine_similarity"

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return _label_per_pair(outputs, self.name)

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, (y,) = embeddings(emit, outputs, 2)
        difference = emit.op("Sub", cosine(emit, x, y), labels["labels"])
        return Elements(emit.op("Mul", difference, difference))


@dataclass(frozen=True)
class Contrastive(MeanLoss):
    """d² / 2 for a label above 0, max(margin - d, 0)² / 2 for one of 0 or -1 (Hadsell et al., CVPR 2006)."""

    name: ClassVar[str] = "contrastive"
    margin: float = setting(0.5, "Distance of a dissimilar pair that is large enough.", above=0)
    distance: str = setting("cosine", "Distance of embeddings.", choices=("euclidean", "cosine"))

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return _label_per_pair(outputs, self.name)

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, (y,) = embeddings(emit, outputs, 2)
        near = distance(emit, x, y, self.distance)
        far = emit.op("Relu", emit.op("Sub", emit.scalar(self.margin, like=near), near))
        similar, dissimilar = _sides(emit, labels["labels"])
        squares = [emit.op("Mul", value, value) for value in (near, far)]
        each = [emit.op("Mul", *pair) for pair in zip((similar, dissimilar), squares, strict=True)]
        return Elements(emit.op("Mul", emit.op("Add", *each), emit.scalar(0.5, like=near)))


def _label_per_pair(outputs: Values, loss: str) -> Sequence[Labels]:
    return [Labels("labels", ir.DataType.FLOAT, (check_embeddings(outputs, 2, loss),))]


def _sides(emit: Emitter, labels: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Whether each pair is similar, and whether it is not, as 0 or 1."""
    similar = emit.cast(emit.op("Greater", labels, emit.scalar(0.0, like=labels)), ir.DataType.FLOAT)
    return similar, emit.op("Sub", emit.scalar(1.0, like=similar), similar)
