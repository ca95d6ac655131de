"""Losses of numbers that are squared near the label and absolute far from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.losses.base import Elements, Labels, MeanLoss
from edgepeft_export.losses.emitting import Values, first, targets
from edgepeft_runtime.settings import setting


@dataclass(frozen=True)
class Huber(MeanLoss):
    """``torch.nn.HuberLoss``: c · (|d| - c / 2), where c = min(|d|, delta)."""

    name: ClassVar[str] = "huber"
    delta: float = setting(1.0, "Distance from which the loss is linear.", above=0)

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        return Elements(_huber(emit, first(outputs), labels["labels"], self.delta))


@dataclass(frozen=True)
class SmoothL1(MeanLoss):
    """``torch.nn.SmoothL1Loss``: Huber's loss divided by its distance."""

    name: ClassVar[str] = "smooth_l1"
    beta: float = setting(1.0, "Distance from which the loss is linear.", above=0, option="smooth-beta")

    def targets(self, outputs: Values) -> Sequence[Labels]:
        return [targets(outputs)]

    def elements(self, emit: Emitter, outputs: Values, labels: Values) -> Elements:
        values = _huber(emit, first(outputs), labels["labels"], self.beta)
        return Elements(emit.op("Mul", values, emit.scalar(1.0 / self.beta, like=values)))


def _huber(emit: Emitter, x: ir.Value, y: ir.Value, delta: float) -> ir.Value:
    distance = emit.op("Abs", emit.op("Sub", x, y))
    cut = emit.op("Min", distance, emit.scalar(delta, like=distance))
    return emit.op("Mul", cut, emit.op("Sub", distance, emit.op("Mul", cut, emit.scalar(0.5, like=cut))))
