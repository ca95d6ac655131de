"""Binary cross-entropy of several labels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from edgepeft_export.errors import WrongClassWeights
from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.emitting import Values, first, targets
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class BCEWithLogits(MeanLoss):
    """``torch.nn.BCEWithLogitsLoss``: labels are probabilities of the output's shape."""

    name: ClassVar[str] = "bce_with_logits"
    reads_scores: ClassVar[bool] = True
    pos_weight: tuple[float, ...] = setting(
        (1.0,),
        "Factor of the positive term, one for all or one for each label; above 1 for rare positives.",
        minimum=0,
        words=("balanced",),
    )

    def __post_init__(self) -> None:
        """Accept one number as well."""
        if isinstance(self.pos_weight, Real):
            object.__setattr__(self, "pos_weight", (float(self.pos_weight),))
        super().__post_init__()

    def targets(self, outputs: Values) -> Sequence[Labels]:
        dims = dims_of(first(outputs))
        if len(self.pos_weight) > 1 and dims[-1:] != [len(self.pos_weight)]:
            raise WrongClassWeights(
                f"{len(self.pos_weight)} weights of positive labels for {dims[-1] if dims else 1} labels.",
                context=None,
                hint="give one weight for all labels, or one for each.",
            )
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        x, y = first(outputs), labels["labels"]
        # (1 - y) x + (1 + (w - 1) y) softplus(-x); with w = 1 that is softplus(x) - x y.
        if all(weight == 1.0 for weight in self.pos_weight):
            return Elements(emit.op("Sub", emit.op("Softplus", x), emit.op("Mul", x, y)))
        one = emit.scalar(1.0, like=x)
        negative = emit.op("Mul", emit.op("Sub", one, y), x)
        factor = emit.op("Add", one, emit.op("Mul", self._surplus(emit, x), y))
        positive = emit.op("Mul", factor, emit.op("Softplus", emit.op("Neg", x)))
        return Elements(emit.op("Add", negative, positive))

    def _surplus(self, emit: Emitter, x: ir.Value) -> ir.Value:
        """The weights minus 1: a scalar, or one for each element of the last axis."""
        if len(self.pos_weight) == 1:
            return emit.scalar(self.pos_weight[0] - 1.0, like=x)
        return emit.constant(np.asarray(self.pos_weight, np.float32) - 1)
