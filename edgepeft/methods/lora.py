"""Low-rank adaptation (Hu et al., ICLR 2022), attached by Hugging Face ``peft``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from edgepeft.methods.base import MethodError, head_modules, out_of_range


@dataclass(frozen=True)
class Lora:
    """Pairs of matrices beside frozen ones: ``y = W x + (alpha / rank) B A x``; names as in ``peft.LoraConfig``.

    Attributes:
        rank: of the pairs.
        alpha: scale; ``None`` means twice the rank.
        target_modules: names (or endings of names) of the modules to adapt; ``None`` takes peft's choice for the
            architecture.
        modules_to_save: modules trained whole beside the pairs; ``None`` means the task head of a classifier.
    """

    name: ClassVar[str] = "lora"
    rank: int = 8
    alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        if self.rank < 1:
            raise out_of_range("rank", self.rank, "1 or more")
        saved = (
            [name for name in head_modules(model) if name != "lm_head"]
            if self.modules_to_save is None
            else list(self.modules_to_save)
        )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
            target_modules=None if self.target_modules is None else list(self.target_modules),
            modules_to_save=saved or None,
            lora_dropout=0.0,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # of peft about its own use of transformers, and of layouts it sets right
                attached: nn.Module = get_peft_model(model, config)
        except (ValueError, KeyError) as error:
            raise MethodError(
                "method-does-not-fit",
                f"LoRA cannot be attached to {type(model).__name__}.",
                context=str(error).strip().splitlines()[0],
                hint=f"choose target_modules among: {', '.join(_linear_modules(model))}.",
            ) from error
        return attached


def _linear_modules(model: nn.Module, limit: int = 12) -> list[str]:
    """Last parts of the names of the modules that peft's LoRA knows."""
    kinds = {"Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "Embedding"}
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in kinds)
    return list(dict.fromkeys(names))[:limit]
