"""LoRA with its random half frozen, which a fleet can average without error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.lora import Lora

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward


@dataclass(frozen=True)
class FrozenA(Lora):
    """LoRA of which only B trains; A keeps its random values (LoRA-FA, Zhang et al., 2023; FFA-LoRA, Sun et al., 2024).

    All devices of a fleet share A, so the mean of their B is also the mean of their products, and the rule ``ffa`` of
    ``edgepeft.aggregate`` is exact. Adapters and updates contain A, which has no gradient and no optimizer state.
    """

    name: ClassVar[str] = "ffa"

    def attach(self, model: nn.Module) -> nn.Module:
        from torch import nn

        from edgepeft.methods.support.pairs import attached_pairs

        attached = super().attach(model)
        for pair in (pair for module in attached.modules() for pair in attached_pairs(module)):
            if not pair.a.any():  # for an embedding, peft starts with zeros in A and random values in B
                nn.init.normal_(pair.a.data)
                nn.init.zeros_(pair.b.data)
        return attached

    def on_graph(self, forward: Forward, _model: nn.Module | None, /) -> Forward:
        """Return the graph in which every A is a non-trainable input."""
        from edgepeft_export.forward import without_training

        return without_training(forward, [name for name in forward.parameters if forward.roles[name] == "lora_A"])
