"""Methods that train vectors: scales of activations, of shared random matrices, of norms. By Hugging Face ``peft``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from edgepeft.methods.base import MethodError, head_modules, out_of_range, train_only, trained_head
from edgepeft.methods.support.peft_methods import attach_peft, targets

_LINEAR = ("Linear", "Conv1D")


@dataclass(frozen=True)
class IA3:
    """One trained scale per channel of keys, values and feed-forward activations (Liu et al., NeurIPS 2022).

    Attributes:
        target_modules: modules whose output is scaled; ``None`` takes peft's choice for the architecture, and all
            products outside the head for one that peft does not know.
        feedforward_modules: those of them whose input is scaled instead; ``None`` takes peft's choice.
        modules_to_save: modules trained whole; ``None`` means the task head of a classifier.
    """

    name: ClassVar[str] = "ia3"
    target_modules: tuple[str, ...] | None = None
    feedforward_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        kinds = (*_LINEAR, "Conv2d", "Conv3d")
        chosen = targets(model, self.target_modules, kinds, KNOWN)
        inputs = None if self.feedforward_modules is None else list(self.feedforward_modules)
        config = IA3Config(
            target_modules=chosen,
            feedforward_modules=[] if inputs is None and chosen is not None else inputs,
            modules_to_save=trained_head(model, self.modules_to_save) or None,
        )
        return attach_peft(model, config, "IA3", kinds)


@dataclass(frozen=True)
class Vera:
    """A pair of frozen random matrices for all layers, with trained vectors between (Kopiczko et al., ICLR 2024).

    Attributes:
        rank: of the random matrices; large, as only vectors train.
        target_modules: linear layers; ``None`` takes peft's choice for the architecture, and all outside the head for
            one that peft does not know.
        modules_to_save: modules trained whole; ``None`` means the task head of a classifier.
        seed: of the random matrices, which an adapter file does not hold.
    """

    name: ClassVar[str] = "vera"
    rank: int = 64
    target_modules: tuple[str, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    seed: int = 0

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import VeraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as KNOWN

        if self.rank < 1:
            raise out_of_range("rank", self.rank, "1 or more")
        config = VeraConfig(
            r=self.rank,
            target_modules=targets(model, self.target_modules, _LINEAR, KNOWN),
            modules_to_save=trained_head(model, self.modules_to_save) or None,
            projection_prng_key=self.seed,
            save_projection=False,
        )
        return attach_peft(model, config, "VeRA", _LINEAR)


@dataclass(frozen=True)
class Norm:
    """Scales and shifts of the norms (Zhao et al., ICLR 2024), and the task head.

    Of transformers' models by peft's LN tuning; of others by marking them. Running statistics of batch norms stay.

    Attributes:
        modules_to_save: modules trained whole; ``None`` means the task head of a classifier.
    """

    name: ClassVar[str] = "norm"
    modules_to_save: tuple[str, ...] | None = None

    def attach(self, model: nn.Module) -> nn.Module:
        norms = [name for name, module in model.named_modules() if _is_norm(module)]
        if not norms:
            raise MethodError(
                "method-does-not-fit",
                f"{type(model).__name__} has no norm with a scale.",
                context=None,
                hint="choose bitfit, ia3 or lora.",
            )
        saved = trained_head(model, self.modules_to_save)
        if not hasattr(model, "config"):
            train_only(model, [*norms, *saved])
            return model
        from peft import LNTuningConfig

        inner = [name for name in norms if name.split(".")[0] not in head_modules(model)]
        return attach_peft(model, LNTuningConfig(target_modules=inner, modules_to_save=saved or None), "Norm tuning")


def _is_norm(module: nn.Module) -> bool:
    """By the class's name: transformers' models bring norms of their own."""
    return "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), nn.Parameter)
