"""Mean absolute error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.emitting import Values, first, targets


@dataclass(frozen=True)
class L1(MeanLoss):
    """``torch.nn.L1Loss``: labels have the output's shape."""

    name: ClassVar[str] = "l1"

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        return Elements(emit.op("Abs", emit.op("Sub", first(outputs), labels["labels"])))
