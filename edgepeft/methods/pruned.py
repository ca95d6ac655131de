"""Fine-tuning of a pruned model's remaining weights. Zeros stay zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, matches, train_only, trained_head
from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Pruned(Method):
    """Trains the weights that a mask keeps, and the head. Zeros stay zero on the device and after merging.

    It fits any model with single weights at zero. Masks of ``torch.nn.utils.prune`` are made permanent.
    """

    name: ClassVar[str] = "pruned"
    adds_parameters: ClassVar[bool] = False
    weights: tuple[str, ...] | None = setting(
        None,
        "Parameters or modules, by name or pattern; by default all weights with at least 4 % zeros.",
        option="weight-names",
    )
    head: tuple[str, ...] | None = setting(
        None, "Names of the modules that train in full; by default the head of a classifier."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        from torch.nn.utils import prune

        from edgepeft.compress.masks import keep_masks, maskable
        from edgepeft_export.graph.constants import MASKED_FRACTION

        for module in model.modules():
            if hasattr(module, "weight_mask") and hasattr(module, "weight_orig"):
                prune.remove(module, "weight")
        head = trained_head(model, self.head)
        layers = [(name, module) for name, module in maskable(model) if self._trains(name, module, head)]
        chosen = [f"{name}.weight".lstrip(".") for name, _ in layers]
        if not chosen:
            raise MethodDoesNotFit(
                f"No weight of {type(model).__name__} is pruned.",
                context=", ".join(self.weights or [f"searched for weights with at least {MASKED_FRACTION:.0%} zeros"]),
                hint="prune it first: prepare(prune=...), --prune weights=0.5, or name the weights.",
            )
        train_only(model, [*chosen, *head])
        keep_masks(model, [model.get_parameter(name) for name in chosen])
        return model

    def _trains(self, name: str, module: nn.Module, head: Sequence[str]) -> bool:
        if self.weights is not None:
            return any(matches(f"{name}.weight", pattern) for pattern in self.weights)
        from edgepeft_export.graph.constants import MASKED_FRACTION

        zeros = float((module.weight == 0).float().mean())
        return MASKED_FRACTION <= zeros < 1 and not any(f"{name}.".startswith(f"{part}.") for part in head)
