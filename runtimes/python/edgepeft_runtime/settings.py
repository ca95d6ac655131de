"""Settings that declare themselves: each field of a dataclass carries its help, its bounds and its option's name.

Types and bounds are checked when a dataclass is created, for Python and the command alike. The command's options and
the list of ``edgepeft methods`` are generated from the declarations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.strict_json import LARGEST

T = TypeVar("T")

_KEY = "setting"
_NOUNS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a text"}


class Kind(NamedTuple):
    """The type of a setting.

    Attributes:
        type: type of the value, or of each part of a tuple.
        several: whether it is a tuple.
        nullable: whether it may be ``None``.
        length: number of parts, where that is fixed.
    """

    type: type
    several: bool = False
    nullable: bool = False
    length: int | None = None


@dataclass(frozen=True)
class Setting:
    """The declaration of one field.

    Attributes:
        help: phrase that begins with a noun or a verb, in the terms of the command line.
        minimum, maximum: inclusive bounds.
        above, below: exclusive bounds.
        choices: the only allowed values; empty allows all.
        option: the command's option without its dashes; by default the field's name.
        words: further values that only the command has; it replaces them.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence[str | int] = ()
    option: str = ""
    words: Sequence[str] = ()

    @property
    def allowed(self) -> str:
        """The bounds or choices in words; empty without any."""
        if self.choices:
            *others, last = map(str, self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        bounds = (("above {:g}", self.above), ("{:g} or more", self.minimum), ("below {:g}", self.below))
        words = [text.format(bound) for text, bound in (*bounds, ("at most {:g}", self.maximum)) if bound is not None]
        return ", ".join(words)

    def accepts(self, value: object, kind: type) -> bool:
        """Whether a plain value is of this type and one of the choices, or within the bounds."""
        if type(value) not in ((int, float) if kind is float else (kind,)):
            return False
        if self.choices:
            return value in self.choices
        return not isinstance(value, (int, float)) or self._within(value)

    def _within(self, value: float) -> bool:
        return (
            (value <= LARGEST if isinstance(value, int) else math.isfinite(value))
            and (self.minimum is None or value >= self.minimum)
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
    words: Sequence[str] = (),
) -> T:
    """Declare a field of ``Settings``; the arguments are the attributes of ``Setting``."""
    declared = Setting(help, minimum, maximum, above, below, tuple(choices), option, tuple(words))
    return field(default=default, metadata={_KEY: declared})


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass whose fields are declared by ``setting``.

    Numbers of numpy become Python's own, and lists become tuples.

    Raises:
        SettingError: a value is of the wrong type or out of range.
    """

    def __post_init__(self) -> None:
        for name, declared in self.declared().items():
            value, kind = getattr(self, name), self.kinds()[name]
            if value is not None or not kind.nullable:
                object.__setattr__(self, name, _checked(name, value, kind, declared))

    def values(self) -> dict[str, object]:
        """The settings that are not ``None``, as a manifest records them."""
        return {name: value for name in self.declared() if (value := getattr(self, name)) is not None}

    @classmethod
    def declared(cls) -> Mapping[str, Setting]:
        """The settings by name."""
        declared = {part.name: part.metadata[_KEY] for part in fields(cls) if _KEY in part.metadata}
        return {name: replace(own, option=own.option or name.replace("_", "-")) for name, own in declared.items()}

    @classmethod
    def defaults(cls) -> Mapping[str, object]:
        """The default of each setting."""
        return {name: getattr(cls, name) for name in cls.declared()}

    @classmethod
    def kinds(cls) -> Mapping[str, Kind]:
        """The type of each setting."""
        hints = get_type_hints(cls)
        return {name: _kind(hints[name]) for name in cls.declared()}


@dataclass(frozen=True)
class Named(Settings):
    """Settings of something that users choose by its name; ``edgepeft_runtime.registry.Registry`` finds it."""

    name: ClassVar[str]


def _kind(hint: object) -> Kind:
    union = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    own = [part for part in union if part is not NoneType][-1]  # the last: of ``int | float`` the wider one
    if get_origin(own) is not tuple:
        assert isinstance(own, type)
        return Kind(own, nullable=NoneType in union)
    parts = get_args(own)
    return Kind(parts[0], True, NoneType in union, None if parts[-1] is Ellipsis else len(parts))


def _checked(name: str, value: object, kind: Kind, declared: Setting) -> object:
    """Return a value of a setting in plain Python types; raises ``BadSetting``."""
    given = value if kind.several else [value]
    if not isinstance(given, (tuple, list)):
        raise BadSetting(name, value, "a tuple")
    parts = tuple(map(_plain, given))
    if kind.length not in (None, len(parts)):
        raise BadSetting(name, value, f"{kind.length} values")
    if not all(declared.accepts(part, kind.type) for part in parts):
        large = any(isinstance(part, int) and part > LARGEST for part in parts)
        limit = f"at most {LARGEST}: files keep it in JSON" if large and kind.type is int else None
        noun = None if declared.choices else _NOUNS.get(kind.type)
        raise BadSetting(name, value, ", ".join(filter(None, [noun, declared.allowed, limit])))
    return parts if kind.several else parts[0]


def _plain(value: object) -> object:
    """Return a number in Python's own type, which JSON can write."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
