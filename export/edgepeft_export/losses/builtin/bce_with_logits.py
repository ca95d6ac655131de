"""Binary cross-entropy of several labels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.emitting import Values, first, targets
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class BCEWithLogits(MeanLoss):
    """``torch.nn.BCEWithLogitsLoss``: labels are probabilities of the output's shape."""

    name: ClassVar[str] = "bce_with_logits"
    reads_scores: ClassVar[bool] = True
    pos_weight: float = setting(1.0, "Factor of the positive term; above 1 for rare positives.", minimum=0)

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, y = first(outputs), labels["labels"]
        # (1 - y) x + (1 + (w - 1) y) softplus(-x); with w = 1 that is softplus(x) - x y.
        if self.pos_weight == 1.0:
            return Elements(emit.op("Sub", emit.op("Softplus", x), emit.op("Mul", x, y)))
        one = emit.scalar(1.0, like=x)
        negative = emit.op("Mul", emit.op("Sub", one, y), x)
        factor = emit.op("Add", one, emit.op("Mul", emit.scalar(self.pos_weight - 1.0, like=x), y))
        positive = emit.op("Mul", factor, emit.op("Softplus", emit.op("Neg", x)))
        return Elements(emit.op("Add", negative, positive))
