"""AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft_export.optimizers.base import DECAY, Hyper, Official, Optimizer, decayed, mix
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepeft_export.graph.emit import Emitter


@dataclass(frozen=True)
class AdamW(Optimizer):
    """``torch.optim.AdamW`` (Loshchilov and Hutter, ICLR 2019): decoupled weight decay, bias-corrected moments."""

    name: ClassVar[str] = "adamw"
    weight_decay: float = setting(0.01, DECAY, minimum=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "Decay of the first and of the second moment.", minimum=0, below=1
    )
    eps: float = setting(1e-8, "Term added to the root of the second moment.", above=0)

    def state(self) -> Sequence[str]:
        return ("exp_avg", "exp_avg_sq")

    def update(
        self,
        emit: Emitter,
        parameter: ir.Value,
        gradient: ir.Value,
        state: Sequence[ir.Value],
        hyper: Hyper,
        decay: bool,
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        first, second = state
        beta1, beta2 = self.betas
        first = mix(emit, first, gradient, beta1)
        second = mix(emit, second, emit.op("Mul", gradient, gradient), beta2)
        # Numerator and denominator are both multiplied by the correction of the root: it is a factor of scalars alone.
        correction = emit.op("Sqrt", _correction(emit, beta2, hyper))
        size = emit.op("Div", emit.op("Mul", hyper.lr, correction), _correction(emit, beta1, hyper))
        eps = emit.op("Mul", emit.scalar(self.eps, like=correction), correction)
        change = emit.op("Mul", size, emit.op("Div", first, emit.op("Add", emit.op("Sqrt", second), eps)))
        if decay and self.weight_decay:
            parameter = decayed(emit, parameter, self.weight_decay, hyper)
        return emit.op("Sub", parameter, change), (first, second)

    def official(self, decay: bool) -> Official | None:
        alpha, beta = self.betas
        attributes = {"alpha": alpha, "beta": beta, "epsilon": self.eps, "weight_decay": decay * self.weight_decay}
        moments = ("first_order_moments", "second_order_moments")
        # Mode 0 adds epsilon after the correction of the second moment, as PyTorch does.
        modes = {"correct_bias": 1, "adam_mode": 0}
        return Official(
            "AdamWOptimizer", ("learning_rate", "step", "params", "gradients", *moments), attributes | modes
        )


def _correction(emit: Emitter, beta: float, hyper: Hyper) -> ir.Value:
    """``1 - beta ** step`` in float64, as in torch, because float32 loses half of its digits in the first steps."""
    import onnx_ir as ir

    power = emit.op("Pow", emit.scalar(beta, like=hyper.step), hyper.step)
    return emit.op("Cast", emit.op("Sub", emit.scalar(1.0, like=power), power), to=int(ir.DataType.FLOAT))
