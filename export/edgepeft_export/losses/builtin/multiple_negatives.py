"""Ranking of each example's counterpart above those of the other examples of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.embeddings import check_embeddings, embeddings, normalized
from edgepeft_export.losses.emitting import Values
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class MultipleNegatives(MeanLoss):
    """Multiple negatives ranking, or InfoNCE (Henderson et al., 2017; van den Oord et al., 2018); no labels.

    The model returns ``[batch, texts, width]``, or an output ``[batch, width]`` for each text: an anchor, its positive,
    and negatives if there are any. The positives and negatives of the other examples of the batch are negatives too,
    so the loss depends on the size of a batch.
    """

    name: ClassVar[str] = "multiple_negatives"
    scale: float = setting(20.0, "Factor of the similarities: 1 / temperature.", above=0)
    similarity: str = setting("cosine", "Similarity of embeddings.", choices=("cosine", "dot"))
    symmetric: bool = setting(False, "Rank the anchors for each positive as well.")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        check_embeddings(outputs, 2, self.name)
        return []

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        del labels
        anchors, others = embeddings(emit, outputs)
        candidates = others[0] if len(others) == 1 else emit.op("Concat", *others, axis=0)
        if self.similarity == "cosine":
            anchors, candidates = normalized(emit, anchors), normalized(emit, candidates)
        products = emit.op("MatMul", anchors, emit.op("Transpose", candidates, perm=[1, 0]))
        scores = emit.op("Mul", products, emit.scalar(self.scale, like=products))
        loss = _of_diagonal(emit, scores)
        if self.symmetric:
            rows = emit.op("Shape", scores, start=0, end=1)
            own = emit.op("Slice", scores, emit.ints(0), rows, emit.ints(1))
            back = _of_diagonal(emit, emit.op("Transpose", own, perm=[1, 0]))
            loss = emit.op("Mul", emit.op("Add", loss, back), emit.scalar(0.5, like=scores))
        return Elements(loss)


def _of_diagonal(emit: Emitter, scores: ir.Value) -> ir.Value:
    """The cross-entropy of each row, whose class is its own number, [rows]."""
    rows = emit.op("Squeeze", emit.op("Shape", scores, start=0, end=1))
    numbers = emit.op("Range", emit.index(0), rows, emit.index(1))
    log_p = emit.op("LogSoftmax", scores, axis=1)
    picked = emit.op("GatherElements", log_p, emit.op("Unsqueeze", numbers, emit.ints(1)), axis=1)
    return emit.op("Neg", emit.op("Squeeze", picked, emit.ints(1)))
