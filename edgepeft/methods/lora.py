"""Low-rank adaptation (Hu et al., ICLR 2022) and its variants, attached by Hugging Face ``peft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from edgepeft.methods.base import out_of_range
from edgepeft.methods.peft_methods import PRODUCTS, attach_peft, saved_modules, targets


@dataclass(frozen=True)
class Lora:
    """Pairs of matrices beside frozen ones: ``y = W x + (alpha / rank) B A x``; names as in ``peft.LoraConfig``.

    Attributes:
        rank: of the pairs.
        alpha: scale; ``None`` means twice the rank.
        target_modules: names (or endings of names) of the modules to adapt; ``None`` takes peft's choice for the
            architecture, and all products outside the head for one that peft does not know.
        modules_to_save: modules trained whole beside the pairs; ``None`` means the task head of a classifier.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import LoraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        if self.rank < 1:
            raise out_of_range("rank", self.rank, "1 or more")
        config = LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
            target_modules=targets(model, self.target_modules, KNOWN, PRODUCTS),
            modules_to_save=saved_modules(model, self.modules_to_save),
            lora_dropout=0.0,
            **self.variant(),
        )
        return attach_peft(model, config, self.name)

    def variant(self) -> dict[str, Any]:
        """Further arguments of ``peft.LoraConfig``."""
        return {}


@dataclass(frozen=True)
class RsLora(Lora):
    """LoRA whose scale is ``alpha / sqrt(rank)`` (Kalajdzievski, 2023): learning keeps its pace as ranks grow."""

    name: ClassVar[str] = "rslora"

    def variant(self) -> dict[str, Any]:
        return {"use_rslora": True}


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA on the direction of each weight, and its magnitude trained beside it (Liu et al., ICML 2024).

    As in the paper, the norm of the adapted weight takes part in no gradient.
    """

    name: ClassVar[str] = "dora"

    def variant(self) -> dict[str, Any]:
        return {"use_dora": True}
