"""Attach methods of Hugging Face ``peft``, and choose their targets."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from edgepeft.methods.errors import MethodDoesNotFit
from edgepeft.sources.architectures import head_modules

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

LAYERS = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d")
"""Names of the classes of modules that multiply by a matrix or a kernel."""


_STATE_SPACES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
_REFUSED = ("conv1d", "out_proj")
"""Modules that peft refuses in models of state spaces, whose kernels read their weights."""


def attach_peft(model: nn.Module, config: PeftConfig, what: str, kinds: Sequence[str] = LAYERS) -> nn.Module:
    """Call ``peft.get_peft_model``, and turn its exceptions into errors that list the modules that fit.

    Args:
        model: The model, which changes in place.
        config: A ``peft.PeftConfig``.
        what: The method, for the message.
        kinds: Names of the classes of modules that it can adapt.
    """
    from peft import get_peft_model

    from edgepeft.methods.support.around import answer_as_base

    try:
        with warnings.catch_warnings():
            # peft warns about its own use of transformers, and about layouts that it corrects
            warnings.simplefilter("ignore")
            attached: nn.Module = get_peft_model(model, config)
    except Exception as error:  # each kind of adapter raises exceptions of its own
        raise MethodDoesNotFit(
            f"{what} cannot be attached to {type(model).__name__}.",
            context=(str(error).strip().splitlines() or [type(error).__name__])[0],
            hint=_hint(model, config, kinds),
        ) from error
    return answer_as_base(attached)


def _hint(model: nn.Module, config: PeftConfig, kinds: Sequence[str]) -> str:
    if not hasattr(config, "target_modules"):  # a prompt or a prefix
        return "choose lora, adapter, bitfit or norm."
    return f"choose target_modules among: {', '.join(_last_parts(model, kinds)) or 'no module fits'}."


def targets(
    model: nn.Module, given: Sequence[str] | None, kinds: Sequence[str], known: Collection[str] = ()
) -> list[str] | None:
    """Return the target modules: those given, ``None`` if peft knows the architecture, else all that fit.

    Args:
        model: The model.
        given: Target modules that the user has named.
        kinds: Names of the classes of modules that the method can adapt.
        known: Architectures for which peft has a default.
    """
    if given is not None:
        return list(given)
    if _architecture(model) in known and not refused(model):  # of its own choices, peft refuses some
        return None
    inner = [
        name
        for name in fitting(model, kinds)
        if not is_in(name, head_modules(model)) and name.rpartition(".")[2] not in refused(model)
    ]
    if not inner:
        raise MethodDoesNotFit(
            f"{type(model).__name__} has no module that the method adapts.",
            context=f"searched for {', '.join(kinds)} outside the head",
            hint="name target_modules, or choose another method.",
        )
    return inner


def refused(model: nn.Module) -> tuple[str, ...]:
    """Return the last parts of names of modules that peft's LoRA refuses in a model."""
    return _REFUSED if _architecture(model) in _STATE_SPACES else ()


def _architecture(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "model_type", None)


def fitting(model: nn.Module, kinds: Sequence[str]) -> list[str]:
    """Return the modules of these classes that peft can adapt, without convolutions with groups or dilation."""
    return [name for name, module in model.named_modules() if type(module).__name__ in kinds and _is_plain(module)]


def is_in(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is one of these, or inside one of them."""
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _is_plain(module: nn.Module) -> bool:
    return getattr(module, "groups", 1) == 1 and set(getattr(module, "dilation", (1,))) == {1}


def _last_parts(model: nn.Module, kinds: Sequence[str], limit: int = 12) -> list[str]:
    """Return the last parts of the names of the modules of these classes."""
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__ in kinds)
    return list(dict.fromkeys(names))[:limit]
