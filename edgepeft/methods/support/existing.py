"""Detect adapters that a model already has. They are trained further or refused, never replaced."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from torch import nn

from edgepeft.methods.base import Method
from edgepeft.methods.errors import AdapterExists, FrozenAdapter, MethodError
from edgepeft.methods.support.around import Around
from edgepeft.methods.support.named import check_names

if TYPE_CHECKING:
    from peft import PeftConfig
from edgepeft_export.errors import NothingTrains

_KINDS: dict[str, tuple[str, dict[str, str], dict[str, bool]]] = {
    "lora": ("LORA", {"rank": "r", "alpha": "lora_alpha"}, {"use_rslora": False, "use_dora": False}),
    "rslora": ("LORA", {"rank": "r", "alpha": "lora_alpha"}, {"use_rslora": True}),
    "dora": ("LORA", {"rank": "r", "alpha": "lora_alpha"}, {"use_dora": True}),
    "ia3": ("IA3", {}, {}),
    "vera": ("VERA", {"rank": "r", "seed": "projection_prng_key"}, {}),
    "norm": ("LN_TUNING", {}, {}),
    "prompt": ("PROMPT_TUNING", {"tokens": "num_virtual_tokens"}, {}),
    "ptuning": ("P_TUNING", {"tokens": "num_virtual_tokens", "hidden": "encoder_hidden_size"}, {}),
    "prefix": ("PREFIX_TUNING", {"tokens": "num_virtual_tokens", "projection": "prefix_projection"}, {}),
}
"""For each method: peft's type, settings with another name in peft, and switches that distinguish variants."""


def trains_on(method: Method, model: nn.Module, *, by_name: bool = False) -> bool:
    """Whether the model already has the method's own adapter, which is then trained further.

    Args:
        method: The method. Settings that are ``None`` fit any adapter.
        model: The model. It does not change.
        by_name: Whether the method was chosen by its name alone, so that all its settings fit any adapter.

    Raises:
        MethodError: The model has an adapter of another method, or a frozen one.
    """
    adapters = adapters_of(model)
    if not adapters or method.name == "freeze":  # freeze names the trained parameters, in an adapter or not
        return False
    config = getattr(model, "active_peft_config", None)
    if config is None or not _is_of(method, config, by_name):
        raise _other_adapter(method, model, adapters)
    check_not_frozen(model)
    return True


def check_not_frozen(model: nn.Module) -> None:
    """Refuse a model without trainable parameters whose adapter is frozen, as peft loads it for inference."""
    adapters = adapters_of(model)
    if adapters and not any(parameter.requires_grad for parameter in model.parameters()):
        raise FrozenAdapter(
            f"The adapter of {type(model).__name__} is frozen.",
            context=f"adapter: {', '.join(adapters)}",
            hint="load it with PeftModel.from_pretrained(..., is_trainable=True) to train it further, or merge it "
            "into the model with merge_and_unload() and attach a new one.",
        )


def attach(method: Method, model: nn.Module) -> nn.Module:
    """Attach a method, and check that everything it names exists and that some parameter trains.

    If the model already has the method's adapter, it is returned unchanged.

    Raises:
        MethodError: The method does not fit, or the model has another adapter.
    """
    if trains_on(method, model):
        return model
    check_names(method, model)
    model = method.attach(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingTrains(
            f"Method {method.name!r} trains no parameter of {type(model).__name__}.",
            context=None,
            hint="choose another method, or name parameters with the method 'freeze'.",
        )
    return model


def adapters_of(model: nn.Module) -> list[str]:
    """List a model's adapters, such as ``default (LORA)`` of peft, or the class names of edgepeft's own layers."""
    configs: dict[str, PeftConfig] = getattr(model, "peft_config", None) or {}
    named = [f"{name} ({_kind(config)})" for name, config in configs.items()]
    own = {type(module).__name__ for module in model.modules() if isinstance(module, Around)}
    return named or sorted(own) or _peft_layers(model)


def _peft_layers(model: nn.Module) -> list[str]:
    """Return the classes of peft's layers in a model that ``inject_adapter_in_model`` has changed."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sorted({type(module).__name__ for module in model.modules() if isinstance(module, BaseTunerLayer)})


def _kind(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _is_of(method: Method, config: PeftConfig, by_name: bool) -> bool:
    """Whether the method would attach an adapter of this configuration."""
    if method.name not in _KINDS:
        return False
    kind, other_names, switches = _KINDS[method.name]
    if _kind(config) != kind or any(bool(getattr(config, name, False)) != value for name, value in switches.items()):
        return False
    names = [] if by_name else [field.name for field in fields(method)]
    given = {name: getattr(method, name) for name in names}
    known = {other_names.get(name, name): value for name, value in given.items() if value is not None}
    return all(_same(value, getattr(config, name, None)) for name, value in known.items())


def _same(setting: object, actual: object) -> bool:
    if isinstance(setting, tuple):
        return (actual is None or isinstance(actual, (list, set, tuple))) and set(setting) == set(actual or ())
    return setting == actual


def _other_adapter(method: Method, model: nn.Module, adapters: list[str]) -> MethodError:
    return AdapterExists(
        f"{type(model).__name__} already has an adapter, and the method {method.name!r} would attach another one.",
        context=f"adapter: {', '.join(adapters)}",
        hint="omit the method to train that adapter further, or merge it into the model first (peft's "
        "merge_and_unload()).",
    )
