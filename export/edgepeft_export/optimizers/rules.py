"""AdamW and SGD as torch computes them: each emits one update of a flat vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir

from edgepeft_export.graph.emit import Emitter
from edgepeft_export.optimizers.base import Hyper, Optimizer, OptimizerError, check_setting


@dataclass(frozen=True)
class AdamW:
    """``torch.optim.AdamW`` (Loshchilov and Hutter, ICLR 2019): decoupled weight decay, bias-corrected moments.

    Attributes:
        lr: default learning rate; the device may set another at each step.
        betas: decay of the first and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: spares biases and norms.
        max_grad_norm: global L2 norm to which gradients are clipped; ``None`` for no clipping.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _check_common(self)
        for beta in self.betas:
            check_setting("betas", beta, "two shares, 0 <= beta < 1", 0 <= beta < 1)
        check_setting("eps", self.eps, "a positive number", self.eps > 0)

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
        first = _mix(emit, first, gradient, beta1)
        second = _mix(emit, second, emit.op("Mul", gradient, gradient), beta2)
        root = emit.op("Div", emit.op("Sqrt", second), emit.op("Sqrt", _correction(emit, beta2, hyper)))
        size = emit.op("Div", hyper.lr, _correction(emit, beta1, hyper))
        change = emit.op("Mul", size, emit.op("Div", first, emit.op("Add", root, emit.scalar(self.eps, like=root))))
        if decay and self.weight_decay:
            kept = emit.op(
                "Sub",
                emit.scalar(1.0, like=hyper.lr),
                emit.op("Mul", hyper.lr, emit.scalar(self.weight_decay, hyper.lr)),
            )
            parameter = emit.op("Mul", parameter, kept)
        return emit.op("Sub", parameter, change), (first, second)

    def describe(self) -> dict[str, Any]:
        return {"kind": "adamw", **asdict(self)}


@dataclass(frozen=True)
class SGD:
    """``torch.optim.SGD``: momentum, Nesterov momentum (Sutskever et al., ICML 2013), L2 weight decay.

    Attributes:
        lr: default learning rate; the device may set another at each step.
        momentum: share of the last change that is kept.
        nesterov: look ahead by the momentum; needs ``momentum`` > 0.
        weight_decay: spares biases and norms.
        max_grad_norm: global L2 norm to which gradients are clipped; ``None`` for no clipping.
    """

    lr: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _check_common(self)
        check_setting("momentum", self.momentum, "0 <= momentum < 1", 0 <= self.momentum < 1)
        if self.nesterov and self.momentum <= 0:
            raise OptimizerError(
                "optimizer-setting",
                "Nesterov momentum needs a momentum.",
                context="momentum = 0",
                hint="set momentum, 0.9 for one.",
            )

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
            gradient = emit.op(
                "Add", gradient, emit.op("Mul", parameter, emit.scalar(self.weight_decay, like=parameter))
            )
        step = gradient
        if self.momentum:
            momentum = emit.scalar(self.momentum, like=gradient)
            state = (emit.op("Add", emit.op("Mul", state[0], momentum), gradient),)
            step = emit.op("Add", gradient, emit.op("Mul", state[0], momentum)) if self.nesterov else state[0]
        return emit.op("Sub", parameter, emit.op("Mul", hyper.lr, step)), state

    def describe(self) -> dict[str, Any]:
        return {"kind": "sgd", **asdict(self)}


_BY_NAME: dict[str, type[AdamW] | type[SGD]] = {"adamw": AdamW, "sgd": SGD}


def by_name(name: str) -> Optimizer:
    """The optimizer of that name with its default settings."""
    if name not in _BY_NAME:
        raise OptimizerError(
            "unknown-optimizer",
            f"There is no optimizer named {name!r}.",
            context=f"there are: {', '.join(_BY_NAME)}",
            hint="choose one.",
        )
    return _BY_NAME[name]()


def _check_common(optimizer: AdamW | SGD) -> None:
    check_setting("lr", optimizer.lr, "a learning rate of 0 or more", optimizer.lr >= 0)
    check_setting("weight_decay", optimizer.weight_decay, "a share of 0 or more", optimizer.weight_decay >= 0)
    norm = optimizer.max_grad_norm
    if norm is not None:
        check_setting("max_grad_norm", norm, "a positive norm, or none", norm > 0)


def _mix(emit: Emitter, old: ir.Value, new: ir.Value, beta: float) -> ir.Value:
    return emit.op(
        "Add", emit.op("Mul", old, emit.scalar(beta, like=old)), emit.op("Mul", new, emit.scalar(1.0 - beta, like=new))
    )


def _correction(emit: Emitter, beta: float, hyper: Hyper) -> ir.Value:
    """``1 - beta ** step`` in float64, as torch has it: float32 would lose half of its digits at the first steps."""
    power = emit.op("Pow", emit.scalar(beta, like=hyper.step), hyper.step)
    return emit.op("Cast", emit.op("Sub", emit.scalar(1.0, like=power), power), to=int(ir.DataType.FLOAT))
