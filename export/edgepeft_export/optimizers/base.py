"""The interface of an optimizer: its settings, its state, and the nodes of one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from edgepeft_runtime.settings import Named, setting

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgepeft_export.graph.emit import Emitter

LR = "Default learning rate; training may set another."
DECAY = "Weight decay; biases and norms are excluded."


class Hyper(NamedTuple):
    """Scalars of one update: ``lr`` (float32), and ``step`` (float64, 1 for the first update)."""

    lr: ir.Value
    step: ir.Value


class Official(NamedTuple):
    """The operator of ONNX Runtime Training that computes an optimizer's update.

    Attributes:
        op_type: of the domain ``com.microsoft``.
        inputs: names of its inputs, in order.
        attributes: of its node.
    """

    op_type: str
    inputs: Sequence[str]
    attributes: Mapping[str, float]


@dataclass(frozen=True)
class Optimizer(Named):
    """Emits the update of one flat vector.

    A subclass is a frozen dataclass of its settings, found by its ``name`` in the files of this package. The files
    import onnx inside functions only: the command lists optimizers without it.
    """

    lr: float = setting(1e-3, LR, minimum=0)
    weight_decay: float = setting(0.0, DECAY, minimum=0)
    max_grad_norm: float | None = setting(None, "Clip gradients to this global L2 norm.", above=0)
    gradient_fraction: float | None = setting(
        None, "Apply this fraction of each gradient, the largest part; carry the rest over.", above=0, maximum=1
    )

    def state(self) -> Sequence[str]:
        """Names of the state vectors. Each has the bucket's size and is initialized with zeros."""
        raise NotImplementedError

    def update(
        self,
        emit: Emitter,
        parameter: ir.Value,
        gradient: ir.Value,
        state: Sequence[ir.Value],
        hyper: Hyper,
        decay: bool,
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        """The parameter and the state after one update."""
        raise NotImplementedError

    def official(self, decay: bool) -> Official | None:  # noqa: ARG002  (for optimizers that have one)
        """ONNX Runtime Training's operator for the same update; ``None`` where it has none.

        Args:
            decay: whether weight decay applies to any parameter.
        """
        return None


def decayed(emit: Emitter, parameter: ir.Value, weight_decay: float, hyper: Hyper) -> ir.Value:
    """``parameter * (1 - lr * weight_decay)``: decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    lost = emit.op("Mul", hyper.lr, emit.scalar(weight_decay, hyper.lr))
    return emit.op("Mul", parameter, emit.op("Sub", emit.scalar(1.0, like=hyper.lr), lost))


def mix(emit: Emitter, old: ir.Value, new: ir.Value, beta: float) -> ir.Value:
    """``beta * old + (1 - beta) * new``."""
    decayed = emit.op("Mul", old, emit.scalar(beta, like=old))
    return emit.op("Add", decayed, emit.op("Mul", new, emit.scalar(1.0 - beta, like=new)))
