"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft_export.optimizers.base import LR, Hyper, Official, Optimizer
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepeft_export.graph.emit import Emitter


@dataclass(frozen=True)
class SGD(Optimizer):
    """``torch.optim.SGD``: momentum, Nesterov momentum (Sutskever et al., ICML 2013), L2 weight decay."""

    name: ClassVar[str] = "sgd"
    lr: float = setting(1e-2, LR, minimum=0)
    momentum: float = setting(0.0, "Fraction of the previous change that is added.", minimum=0, below=1)
    nesterov: bool = setting(False, "Use Nesterov momentum.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise BadSetting("momentum", self.momentum, "a number above 0, such as 0.9, for Nesterov momentum")

    def state(self) -> Sequence[str]:
        return ("momentum_buffer",) if self.momentum else ()

    def update(
        self,
        emit: Emitter,
        parameter: ir.Value,
        gradient: ir.Value,
        state: Sequence[ir.Value],
        hyper: Hyper,
        decay: bool,
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        if decay and self.weight_decay:
            pull = emit.op("Mul", parameter, emit.scalar(self.weight_decay, like=parameter))
            gradient = emit.op("Add", gradient, pull)
        step = gradient
        if self.momentum:
            momentum = emit.scalar(self.momentum, like=gradient)
            state = (emit.op("Add", emit.op("Mul", state[0], momentum), gradient),)
            step = emit.op("Add", gradient, emit.op("Mul", state[0], momentum)) if self.nesterov else state[0]
        return emit.op("Sub", parameter, emit.op("Mul", hyper.lr, step)), state

    def official(self, decay: bool) -> Official | None:
        plain = not (self.momentum or (decay and self.weight_decay))
        return Official("SGDOptimizerV2", ("learning_rate", "params", "gradients"), {}) if plain else None
