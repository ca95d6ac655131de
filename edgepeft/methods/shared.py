"""LoRA whose weights are shared across blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.lora import Lora

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Shared(Lora):
    """LoRA whose pairs are the same in every block: one pair per kind of layer (query, value, …) and shape.

    The update contains each pair once. An adapter of peft contains it under each layer's name.
    """

    name: ClassVar[str] = "shared"
    supports_onnx: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> nn.Module:
        from torch import nn

        attached = super().attach(model)
        first: dict[tuple[object, ...], nn.Module] = {}
        for name, layer in attached.named_modules():
            if not isinstance(getattr(layer, "lora_A", None), nn.ModuleDict) or "default" not in layer.lora_A:
                continue
            pair = layer.lora_A["default"], layer.lora_B["default"]
            kind = (name.rpartition(".")[2], *(matrix.weight.shape for matrix in pair))
            owner = first.setdefault(kind, layer)
            layer.lora_A["default"], layer.lora_B["default"] = owner.lora_A["default"], owner.lora_B["default"]
        return attached
