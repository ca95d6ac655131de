"""Low-rank adaptation (Hu et al., ICLR 2022) and its variants, attached by Hugging Face ``peft``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, OnnxReader, fits, train_only, trained_head
from edgepeft.methods.support.peft_methods import LAYERS, attach_peft, fitting, is_in, refused, targets
from edgepeft.sources.architectures import head_modules
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward


@dataclass(frozen=True)
class Lora(Method):
    """Pairs of matrices beside frozen ones: ``y = W x + (alpha / rank) B A x``; names as in ``peft.LoraConfig``.

    In an architecture that peft does not know, every matmul outside the head gets a pair.
    """

    name: ClassVar[str] = "lora"
    supports_onnx: ClassVar[bool] = True
    adapts_own: ClassVar[bool] = True
    """Whether layers that peft cannot adapt get pairs of our own."""
    rank: int = setting(8, "Rank of the pairs.", minimum=1)
    alpha: float | None = setting(None, "Numerator of the scale alpha / rank; by default twice the rank.")
    target_modules: tuple[str, ...] | None = setting(
        None, "Names of the modules to adapt, or their last parts; by default peft's choice for the architecture."
    )
    modules_to_save: tuple[str, ...] | None = setting(
        None, "Modules that train in full; by default the task head of a classifier."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        from edgepeft.methods.support.lora_own import attach_own, own_targets

        head = trained_head(model, self.modules_to_save)
        own = own_targets(model, self.target_modules, head) if self.adapts_own and not self._known(model) else []
        theirs = self._targets(model, own)
        pairs = attach_own(model, own, self.rank, self.scale * self.rank)
        if theirs == []:
            train_only(model, head)
        else:
            model = self._attach_peft(model, theirs, head)
        for parameter in pairs:
            parameter.requires_grad_(True)
        return model

    def read_onnx(self, read: OnnxReader, trainable: Sequence[str]) -> Forward:
        from edgepeft_export.forward.onnx_source.lora import GraphLora

        whole_head = self.modules_to_save is None and not trainable
        lora = GraphLora(self.rank, self.scale * self.rank, self.target_modules, train_head=whole_head)
        return read((*trainable, *(self.modules_to_save or ())), lora)

    @property
    def scale(self) -> float:
        """The scale of the pairs."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank

    def _known(self, model: nn.Module) -> bool:
        """Whether peft chooses the targets, because it knows the architecture."""
        return self.target_modules is None and _model_type(model) in _peft_choices()

    def _targets(self, model: nn.Module, own: Sequence[str]) -> list[str] | None:
        """Return the target modules for peft; an empty list if there are none."""
        if self._known(model):
            # By name, because peft finds no target in mixtures of experts with transformers 5.
            return [name for name in _peft_choices()[str(_model_type(model))] if name not in refused(model)]
        if not own:
            return targets(model, self.target_modules, LAYERS)
        return [name for name in fitting(model, LAYERS) if name not in own and self._wants(name, model)]

    def _wants(self, name: str, model: nn.Module) -> bool:
        if self.target_modules is not None:
            return any(fits(name, target) for target in self.target_modules)
        return not is_in(name, head_modules(model)) and name.rpartition(".")[2] not in refused(model)

    def _attach_peft(self, model: nn.Module, theirs: Sequence[str] | None, head: Sequence[str]) -> nn.Module:
        from peft import LoraConfig

        config = LoraConfig(
            r=self.rank,
            lora_alpha=2 * self.rank if self.alpha is None else self.alpha,
            target_modules=None if theirs is None else list(theirs),
            modules_to_save=list(head) or None,
            lora_dropout=0.0,
            **self.variant(),
        )
        return attach_peft(model, config, self.name)

    def variant(self) -> dict[str, bool]:
        """Return further arguments of ``peft.LoraConfig``."""
        return {}


def _model_type(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def _peft_choices() -> Mapping[str, Sequence[str]]:
    """Return the modules that peft adapts by default, by the model's type."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    choices: Mapping[str, Sequence[str]] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    return choices


@dataclass(frozen=True)
class RsLora(Lora):
    """LoRA whose scale is ``alpha / sqrt(rank)`` (Kalajdzievski, 2023), so that ranks learn at one speed."""

    name: ClassVar[str] = "rslora"

    @property
    def scale(self) -> float:
        """The scale of the pairs."""
        return super().scale * math.sqrt(self.rank)

    def variant(self) -> dict[str, bool]:
        return {"use_rslora": True}


@dataclass(frozen=True)
class Dora(Lora):
    """LoRA on the direction of each weight, whose magnitude also trains (Liu et al., ICML 2024).

    As in the paper, no gradient flows through the norm of the adapted weight.
    """

    name: ClassVar[str] = "dora"
    supports_onnx: ClassVar[bool] = False
    adapts_own: ClassVar[bool] = False

    def variant(self) -> dict[str, bool]:
        return {"use_dora": True}
