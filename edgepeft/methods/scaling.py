"""Methods that train vectors: scales of activations, of shared random matrices and of norms, attached by ``peft``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgepeft.methods.base import Method, OnnxReader, train_only, trained_head
from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft.methods.support.peft_methods import attach_peft, targets
from edgepeft.sources.architectures import head_modules
from edgepeft_runtime.settings import setting

if TYPE_CHECKING:
    from torch import nn

    from edgepeft_export.forward import Forward

_LINEAR = ("Linear", "Conv1D")


@dataclass(frozen=True)
class IA3(Method):
    """One trained scale per channel of keys, values and feed-forward activations (Liu et al., NeurIPS 2022).

    In an architecture that peft does not know, every matmul outside the head is scaled.
    """

    name: ClassVar[str] = "ia3"
    target_modules: tuple[str, ...] | None = setting(
        None, "Names of the modules to adapt, or their last parts; by default peft's choice for the architecture."
    )
    feedforward_modules: tuple[str, ...] | None = setting(
        None, "Target modules whose input is scaled instead of the output; by default peft's choice."
    )
    modules_to_save: tuple[str, ...] | None = setting(
        None, "Modules that train in full; by default the task head of a classifier."
    )

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
class Vera(Method):
    """A pair of frozen random matrices for all layers, with trained vectors between (Kopiczko et al., ICLR 2024).

    The rank can be large, because only vectors train. An adapter file contains the seed of the random matrices instead
    of the matrices.
    """

    name: ClassVar[str] = "vera"
    rank: int = setting(64, "Rank of the random matrices.", minimum=1)
    target_modules: tuple[str, ...] | None = setting(
        None, "Names of the modules to adapt, or their last parts; by default peft's choice for the architecture."
    )
    modules_to_save: tuple[str, ...] | None = setting(
        None, "Modules that train in full; by default the task head of a classifier."
    )
    seed: int = setting(0, "Seed of the method's random values.", minimum=0, option="method-seed")

    def attach(self, model: nn.Module) -> nn.Module:
        from peft import VeraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_VERA_TARGET_MODULES_MAPPING as KNOWN

        config = VeraConfig(
            r=self.rank,
            target_modules=targets(model, self.target_modules, _LINEAR, KNOWN),
            modules_to_save=trained_head(model, self.modules_to_save) or None,
            projection_prng_key=self.seed,
            save_projection=False,
        )
        return attach_peft(model, config, "VeRA", _LINEAR)


@dataclass(frozen=True)
class Norm(Method):
    """Scales and shifts of the norms (Zhao et al., ICLR 2024), and the task head.

    Models of transformers use peft's LN tuning; other models train their own norms. Running statistics of batch norms
    do not change.
    """

    name: ClassVar[str] = "norm"
    supports_onnx: ClassVar[bool] = True
    modules_to_save: tuple[str, ...] | None = setting(
        None, "Modules that train in full; by default the task head of a classifier."
    )

    def attach(self, model: nn.Module) -> nn.Module:
        norms = [name for name, module in model.named_modules() if _is_norm(module)]
        if not norms:
            raise MethodDoesNotFit(
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

    def read_onnx(self, read: OnnxReader, trainable: Sequence[str]) -> Forward:
        head = ("head",) if self.modules_to_save is None else ()
        return read((*trainable, *(self.modules_to_save or ())), kinds=("norm", *head))


def _is_norm(module: nn.Module) -> bool:
    """Recognize a norm by its class's name, because models of transformers have norms of their own."""
    return "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
