"""Mean squared error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.emitting import Values, first, targets


@dataclass(frozen=True)
class MSE(MeanLoss):
    """``torch.nn.MSELoss``: labels have the output's shape."""

    name: ClassVar[str] = "mse"

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        difference = emit.op("Sub", first(outputs), labels["labels"])
        return Elements(emit.op("Mul", difference, difference))
