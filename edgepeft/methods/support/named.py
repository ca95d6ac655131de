"""Check that the names in a method's settings exist in the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from fnmatch import fnmatchcase

from torch import nn

from edgepeft.methods.base import Method
from edgepeft.methods.errors import MethodError, NoSuchName
from edgepeft_runtime.names import meant


def check_names(method: Method, model: nn.Module) -> None:
    """Refuse a setting that names no module or parameter, because a typo would train fewer parameters than intended.

    Args:
        method: A dataclass of settings; its tuples of strings are names, their last parts, or patterns.
        model: The model to which the method is going to be attached.
    """
    known = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    for field in fields(method):
        given = getattr(method, field.name)
        for name in given if isinstance(given, tuple) else ():
            if isinstance(name, str) and not any(_matches(name, full) for full in known):
                raise _unknown(type(method).name, field.name, name, model, known)


def _matches(name: str, full: str) -> bool:
    """Whether a name, its last parts or a pattern matches this module or parameter."""
    return full == name or full.endswith(f".{name}") or fnmatchcase(full, name)


def _unknown(method: str, setting: str, name: str, model: nn.Module, known: Sequence[str]) -> MethodError:
    last = list(dict.fromkeys(full.rpartition(".")[2] for full in known if not full.rpartition(".")[2].isdecimal()))
    return NoSuchName(
        f"Nothing in {type(model).__name__} is named {name!r}.",
        context=f"{method}: {setting} names it. Known names: {meant(name, known if '.' in name else last)}",
        hint="correct the name, or omit it.",
    )
