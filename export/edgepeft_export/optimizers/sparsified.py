"""Gradient sparsification with error feedback: only the largest part of each gradient is applied, the rest waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.graph.shapes import dims_of
from edgepeft_export.optimizers.base import Hyper, Optimizer, check_setting
from edgepeft_export.optimizers.rules import AdamW

RESIDUAL = "residual"


@dataclass(frozen=True)
class Sparsified:
    """Top-k sparsification with memory (Stich et al., NeurIPS 2018; Lin et al., ICLR 2018), before any optimizer.

    What was held back so far is added to the gradient; the largest elements of the sum reach the optimizer, the rest is
    held back again. Taken per bucket: large tensors alone, small ones together.

    Attributes:
        inner: the optimizer that is given what is applied.
        share: of the elements, above 0 and at most 1; of several equally large ones at the bound, all are applied.
    """

    inner: Optimizer = field(default_factory=AdamW)
    share: float = 0.1

    def __post_init__(self) -> None:
        check_setting("share", self.share, "a share above 0, at most 1", 0 < self.share <= 1)

    @property
    def lr(self) -> float:
        """That of the inner optimizer."""
        return self.inner.lr

    @property
    def max_grad_norm(self) -> float | None:
        """That of the inner optimizer."""
        return self.inner.max_grad_norm

    def state(self) -> Sequence[str]:
        return (*self.inner.state(), RESIDUAL)

    def update(
        self,
        emit: Emitter,
        parameter: ir.Value,
        gradient: ir.Value,
        state: Sequence[ir.Value],
        hyper: Hyper,
        decay: bool,
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        total = emit.op("Add", gradient, state[-1])
        (size,) = dims_of(state[-1])
        assert isinstance(size, int)
        sizes = emit.op("Abs", total)
        largest, places = emit.ops("TopK", sizes, emit.ints(max(1, round(self.share * size))), outputs=2, sorted=0)
        places.dtype = ir.DataType.INT64
        bound = emit.op("ReduceMin", largest, keepdims=0)
        applied = emit.op("Where", emit.op("Less", sizes, bound), emit.scalar(0.0, like=total), total)
        parameter, inner = self.inner.update(emit, parameter, applied, state[:-1], hyper, decay)
        return parameter, (*inner, emit.op("Sub", total, applied))

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "gradient_share": self.share}
