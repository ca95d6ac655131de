"""Names that a method's settings give: each must mean something of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from fnmatch import fnmatchcase

from torch import nn

from edgepeft.methods.base import Method
from edgepeft.methods.errors import MethodError, NoSuchName
from edgepeft_runtime.names import meant


def check_names(method: Method, model: nn.Module) -> None:
    """Refuse a setting that names a module or parameter which is not there: a typo would train less than was meant.

    Args:
        method: a dataclass of settings; its tuples of strings are names, endings of names, or patterns.
        model: what the method is going to be attached to.
    """
    known = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    for field in fields(method):
        given = getattr(method, field.name)
        for name in given if isinstance(given, tuple) else ():
            if isinstance(name, str) and not any(_means(name, full) for full in known):
                raise _unknown(type(method).name, field.name, name, model, known)


def _means(given: str, full: str) -> bool:
    """Whether a name, the end of one or a pattern means this module or parameter."""
    return full == given or full.endswith(f".{given}") or fnmatchcase(full, given)


def _unknown(method: str, setting: str, name: str, model: nn.Module, known: Sequence[str]) -> MethodError:
    last = list(dict.fromkeys(full.rpartition(".")[2] for full in known if not full.rpartition(".")[2].isdecimal()))
    return NoSuchName(
        f"Nothing in {type(model).__name__} is named {name!r}.",
        context=f"{method}: {setting} names it. There are: {meant(name, known if '.' in name else last)}",
        hint="correct the name, or leave it out.",
    )
