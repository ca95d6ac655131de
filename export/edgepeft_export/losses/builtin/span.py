"""Cross-entropy of the first and the last token of a span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.errors import WrongLogitsRank
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.losses.base import Labels, Loss, LossTerms
from edgepeft_export.losses.builtin.cross_entropy import CrossEntropy, cross_entropy
from edgepeft_export.losses.emitting import Values, text
from edgepeft_runtime.settings import setting

_NAMES = ("start_positions", "end_positions")


@dataclass(frozen=True)
class Span(Loss):
    """The loss of extractive question answering in transformers: the mean over the first and the last token.

    The model has scores of each token, ``[batch, sequence]``, as first and second output.
    """

    name: ClassVar[str] = "span"
    ignore_index: int = setting(-100, "Position that is ignored.")

    def labels(self, outputs: Values) -> Sequence[Labels]:
        scores = list(outputs.values())[:2]
        if len(scores) < 2 or any(len(dims_of(value)) != 2 for value in scores):
            found = ", ".join(text(dims_of(value)) for value in scores)
            raise WrongLogitsRank(
                f"The span loss needs two outputs [batch, sequence]; the model returns {found}.",
                context=None,
                hint="let the model return the scores of the first and of the last token (outputs=, --outputs).",
            )
        batch = dims_of(scores[0])[:1]
        return [Labels(name, ir.DataType.INT64, tuple(batch), None, self.ignore_index) for name in _NAMES]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        settings = CrossEntropy(ignore_index=self.ignore_index)
        pairs = zip(list(outputs.values())[:2], _NAMES, strict=True)
        first, last = (cross_entropy(emit, scores, labels[name], settings) for scores, name in pairs)
        return LossTerms(*(emit.op("Add", *terms) for terms in zip(first, last, strict=True)))
