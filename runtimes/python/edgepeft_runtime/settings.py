"""Settings that declare themselves: each field of a dataclass carries its help, its bounds and its option's name.

The bounds are checked when a value is made, for Python's callers and the command alike. The command's options and
``edgepeft methods`` are made of the declarations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from edgepeft_runtime.errors import BadSetting

T = TypeVar("T")

_KEY = "setting"


@dataclass(frozen=True)
class Setting:
    """What is declared of one field.

    Attributes:
        help: a phrase that begins with a noun or a verb, in the terms of the command line.
        minimum, maximum: bounds that are allowed themselves.
        above, below: bounds that are not.
        choices: the only values allowed, where there are any.
        option: the command's option without the dashes before it; by default the field's name.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str | int] = ()
    option: str = ""

    @property
    def allowed(self) -> str:
        """The values that fit, in words; empty where all do."""
        if self.choices:
            *others, last = map(str, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        bounds = (("above {:g}", self.above), ("{:g} or more", self.minimum), ("below {:g}", self.below))
        words = [text.format(bound) for text, bound in (*bounds, ("at most {:g}", self.maximum)) if bound is not None]
        return ", ".join(words)

    def accepts(self, value: object) -> bool:
        """Whether a value, or each part of a tuple, lies within the bounds."""
        if isinstance(value, (tuple, list)):
            return all(self.accepts(part) for part in value)
        if self.choices:
            return value in self.choices
        if not self.allowed and not isinstance(value, float):
            return True
        return isinstance(value, (int, float)) and math.isfinite(value) and self._within(value)

    def _within(self, value: float) -> bool:
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str | int] = (),
    option: str = "",
) -> T:
    """Declare a field of :class:`Settings`; the arguments are the attributes of :class:`Setting`."""
    declared = Setting(help, minimum, maximum, above, below, tuple(choices), option)
    return field(default=default, metadata={_KEY: declared})


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass whose fields are declared by :func:`setting`; one that is out of range cannot be made.

    Raises:
        SettingError: a value is out of range.
    """

    def __post_init__(self) -> None:
        for name, declared in self.declared().items():
            value = getattr(self, name)
            if value is not None and not declared.accepts(value):
                raise BadSetting(name, value, declared.allowed or "a finite number")
            default = type(self).defaults()[name]
            if isinstance(default, tuple) and default and len(value) != len(default):
                raise BadSetting(name, value, f"{len(default)} values")

    def values(self) -> dict[str, object]:
        """The settings that are not ``None``, as a manifest records them."""
        return {name: value for name in self.declared() if (value := getattr(self, name)) is not None}

    @classmethod
    def declared(cls) -> Mapping[str, Setting]:
        """The settings by name."""
        declared = {part.name: part.metadata[_KEY] for part in fields(cls) if _KEY in part.metadata}
        return {name: replace(one, option=one.option or name.replace("_", "-")) for name, one in declared.items()}

    @classmethod
    def defaults(cls) -> Mapping[str, object]:
        """The default of each setting."""
        return {name: getattr(cls, name) for name in cls.declared()}

    @classmethod
    def kinds(cls) -> Mapping[str, tuple[type, bool]]:
        """Type of each setting, or of its parts, and whether it is a tuple; ``None`` is left out of unions."""
        hints = get_type_hints(cls)
        return {name: _kind(hints[name]) for name in cls.declared()}


@dataclass(frozen=True)
class Named(Settings):
    """Settings of something that users choose by its name; :class:`edgepeft_runtime.registry.Registry` finds it."""

    name: ClassVar[str]


def _kind(hint: object) -> tuple[type, bool]:
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    several = get_origin(hint) is tuple
    kind = get_args(hint)[0] if several else hint
    assert isinstance(kind, type)
    return kind, several
