"""Lion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft_export.optimizers.base import LR, Hyper, Optimizer, decayed, mix
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepeft_export.graph.emit import Emitter


@dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a momentum, with decoupled weight decay (Chen et al., 2023, arXiv:2302.06675, algorithm 2).

    Its state is half of AdamW's. As every element moves by ``lr``, the paper takes a learning rate 3 to 10 times
    smaller than AdamW's, and a weight decay so many times larger.
    """

    name: ClassVar[str] = "lion"
    lr: float = setting(1e-4, LR, minimum=0)
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "Decay of the momentum in the update, and of the stored momentum.", minimum=0, below=1
    )

    def state(self) -> Sequence[str]:
        return ("exp_avg",)

    def update(
        self,
        emit: Emitter,
        parameter: ir.Value,
        gradient: ir.Value,
        state: Sequence[ir.Value],
        hyper: Hyper,
        decay: bool,
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        (momentum,) = state
        direction = emit.op("Sign", mix(emit, momentum, gradient, self.betas[0]))
        if decay and self.weight_decay:
            parameter = decayed(emit, parameter, self.weight_decay, hyper)
        moved = emit.op("Sub", parameter, emit.op("Mul", hyper.lr, direction))
        return moved, (mix(emit, momentum, gradient, self.betas[1]),)
