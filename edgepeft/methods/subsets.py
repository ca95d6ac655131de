"""Methods that train some of the model's own parameters, and add none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, OnnxReader, train_only, trained_head
from edgepeft.methods.errors import NoBiases, NoHead
from edgepeft.sources.architectures import head_modules
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward


@dataclass(frozen=True)
class BitFit(Method):
    """All biases and the task head (Ben Zaken et al., ACL 2022).

    With ``head=()`` only biases train.
    """

    name: ClassVar[str] = "bitfit"
    supports_onnx: ClassVar[bool] = True
    adds_parameters: ClassVar[bool] = False
    head: tuple[str, ...] | None = setting(
        None, "Names of the modules that train in full; by default the head of a classifier."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        biases = [name for name, _ in model.named_parameters() if name.rpartition(".")[2].startswith("bias")]
        if not biases:
            raise NoBiases(
                f"{type(model).__name__} has no biases to train.",
                context=None,
                hint="choose lora or head: models such as Llama are built without biases.",
            )
        train_only(model, [*biases, *trained_head(model, self.head)])
        return model

    def read_onnx(self, read: OnnxReader, trainable: Sequence[str]) -> Forward:
        head = ("head",) if self.head is None else ()
        return read((*trainable, *(self.head or ())), kinds=("bias", *head))


@dataclass(frozen=True)
class Head(Method):
    """The task head alone."""

    name: ClassVar[str] = "head"
    supports_onnx: ClassVar[bool] = True
    adds_parameters: ClassVar[bool] = False
    modules: tuple[str, ...] | None = setting(None, "Names of the head's modules; by default found by name.")

    def attach(self, model: nn.Module) -> nn.Module:
        modules = self._modules(model) if self.modules is None else list(self.modules)
        if not modules:
            raise NoHead(
                f"{type(model).__name__} has no task head with weights of its own.",
                context=f"its modules: {', '.join(name for name, _ in model.named_children())}",
                hint="name the head's modules.",
            )
        train_only(model, modules)
        return model

    def read_onnx(self, read: OnnxReader, trainable: Sequence[str]) -> Forward:
        named = (*trainable, *(self.modules or ()))
        return read(named, kinds=() if self.modules is not None else ("head",))

    def _modules(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_parameters()]  # a tied weight has the embedding's name
        return [head for head in head_modules(model) if any(name.startswith(f"{head}.") for name in names)]


@dataclass(frozen=True)
class Full(Method):
    """Full fine-tuning: every parameter."""

    name: ClassVar[str] = "full"
    adds_parameters: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> nn.Module:
        train_only(model, ["*"])
        return model
