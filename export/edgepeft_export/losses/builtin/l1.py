"""Mean absolute error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Labels, Loss, LossTerms
from edgepeft_export.losses.emitting import Values, first, mean_of_all, targets


@dataclass(frozen=True)
class L1(Loss):
    """``torch.nn.L1Loss``: labels have the output's shape."""

    name: ClassVar[str] = "l1"

    def labels(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def emit(self, emit: Emitter, outputs: Values, labels: Values) -> LossTerms:
        return mean_of_all(emit, emit.op("Abs", emit.op("Sub", first(outputs), labels["labels"])))
