"""An anchor is to be nearer to its positive than to its negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.embeddings import check_embeddings, distance, embeddings
from edgepeft_export.losses.emitting import Values
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class Triplet(MeanLoss):
    """``torch.nn.TripletMarginLoss``: max(d(anchor, positive) - d(anchor, negative) + margin, 0); no labels.

    The model returns ``[batch, 3, width]``, or three outputs ``[batch, width]``: anchor, positive, negative.
    """

    name: ClassVar[str] = "triplet"
    margin: float = setting(1.0, "Distance that counts as far enough.", minimum=0)
    distance: str = setting("euclidean", "Distance of embeddings.", choices=("euclidean", "cosine"))

    def targets(self, outputs: Values) -> Sequence[Labels]:
        check_embeddings(outputs, 3, self.name)
        return []

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        del labels
        anchor, (positive, negative) = embeddings(emit, outputs, 3)
        near, far = (distance(emit, anchor, other, self.distance) for other in (positive, negative))
        apart = emit.op("Sub", near, far)
        return Elements(emit.op("Relu", emit.op("Add", apart, emit.scalar(self.margin, like=apart))))
