"""Settings of methods as text: what they are called, and what they turn into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import click

if TYPE_CHECKING:
    from edgepeft.methods import Method


def configured(name: str, options: Mapping[str, Any], settings: Sequence[str]) -> Method:
    """The method of that name with options of the command and further settings, ``name=value``.

    Raises:
        click.UsageError: a setting is no pair, or given twice, or its value is of the wrong kind.
        MethodError: the method has no such setting, or its value is out of range.
    """
    from edgepeft.methods import by_name
    from edgepeft.methods.base import method_class, unknown_setting

    kinds = {key: kind for key, (kind, _) in described(method_class(name)).items()}
    values = dict(options)
    for pair in settings:
        key, equals, text = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--setting {pair!r} is not like NAME=VALUE.")
        if key in values:
            raise click.UsageError(f"the setting {key} is given twice.")
        if key not in kinds:
            raise unknown_setting(name, [key], list(kinds))
        values[key] = _value(key, kinds[key], text)
    return by_name(name, **values)


def described(cls: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each setting that can be given as text."""
    hints = get_type_hints(cls)
    kinds = {field.name: (_plain(hints[field.name]), field.default) for field in fields(cls)}
    return {name: pair for name, pair in kinds.items() if pair[0] is not None and pair[1] is not MISSING}


def _plain(hint: Any) -> Any:
    """``int``, ``float``, ``str``, ``bool``, or ``tuple`` of strings; ``None`` for what is none of them."""
    if get_origin(hint) in (Union, UnionType):
        hint = next((part for part in get_args(hint) if part is not NoneType), None)
    if hint in (int, float, str, bool):
        return hint
    return tuple if get_origin(hint) is tuple and get_args(hint)[0] is str else None


def _value(key: str, kind: Any, text: str) -> Any:
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise click.UsageError(f"the setting {key} is true or false, not {text!r}.")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise click.UsageError(f"the setting {key} is a number, not {text!r}.") from None
