"""Support prefixes on models whose ``forward`` calls the cache of keys and values ``cache``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING

from edgepeft.methods.errors import MethodDoesNotFit

if TYPE_CHECKING:
    from torch import nn


def accept_past_key_values(model: nn.Module) -> nn.Module:
    """Let the model inside a ``PeftModel`` with a prefix accept ``past_key_values``, in place.

    peft feeds a prefix as ``past_key_values`` and searches for an argument of that name. transformers calls it
    ``cache`` since 5.24, so peft up to 0.21 refuses encoders. Modules with the old name do not change.

    Raises:
        MethodError: Neither the model nor the transformer in it has a cache of keys and values.
    """
    base: nn.Module = model.get_base_model()
    transformer = base.get_submodule(model.transformer_backbone_name)
    if not any(_arguments(module) & {_OLD, _NEW} for module in (base, transformer)):
        raise MethodDoesNotFit(
            f"A prefix cannot be put before the keys and values of {type(base).__name__}.",
            context=f"{type(transformer).__name__}.forward has neither {_OLD!r} nor {_NEW!r} as an argument.",
            hint="choose prompt, ptuning or lora.",
        )
    for module in (base, transformer):
        if _NEW in _arguments(module) and _OLD not in _arguments(module):
            # Bound to the module, so that a deep copy of the module is bound to the copy.
            module.forward = MethodType(_renaming(type(module).forward), module)
    return model


_OLD, _NEW = "past_key_values", "cache"


def _arguments(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _renaming(forward: Callable[..., object]) -> Callable[..., object]:
    """Return the method with ``past_key_values`` for ``cache``, also in its signature."""

    @functools.wraps(forward)
    def renamed(self: nn.Module, *args: object, past_key_values: object = None, **kwargs: object) -> object:
        given = {} if past_key_values is None else {_NEW: past_key_values}
        return forward(self, *args, **kwargs, **given)

    signature = inspect.signature(forward)
    past = inspect.Parameter(_OLD, inspect.Parameter.KEYWORD_ONLY, default=None)
    others = [parameter for parameter in signature.parameters.values() if parameter.kind != past.VAR_KEYWORD]
    rest = [parameter for parameter in signature.parameters.values() if parameter.kind == past.VAR_KEYWORD]
    renamed.__signature__ = signature.replace(parameters=[*others, past, *rest])  # type: ignore[attr-defined]
    return renamed
