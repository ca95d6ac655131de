"""Registries of classes by name, collected from the modules of a package, so that a new class is only a new file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Generic, TypeVar

from edgepeft_runtime.errors import SettingError, UnknownName, UnknownSetting
from edgepeft_runtime.names import did_you_mean
from edgepeft_runtime.settings import Named

T = TypeVar("T", bound=Named)


class Registry(Mapping[str, type[T]], Generic[T]):
    """The subclasses of a base class that the modules of a package define, by ``name`` and sorted by it.

    The modules are imported on first use, so they must be cheap to import. Subpackages are ignored.

    Args:
        base: the base class. Classes without a ``name`` of their own, such as the base, are not registered.
        package: the full name of the package.
        what: the noun for messages, such as ``method``.
    """

    def __init__(self, base: type[T], package: str, what: str) -> None:
        self._base = base
        self._package = package
        self.what = what

    def __getitem__(self, name: str) -> type[T]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def find(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            SettingError: there is none.
        """
        if name not in self._classes:
            raise UnknownName(
                f"There is no {self.what} named {name!r}.",
                context=f"there are: {', '.join(self._classes)}",
                hint=did_you_mean(name, self._classes),
            )
        return self._classes[name]

    def make(self, name: str, **settings: object) -> T:
        """Return an instance of the class of that name with these settings.

        Raises:
            SettingError: the name or a setting is unknown, or a value is out of range.
        """
        cls = self.find(name)
        for setting in settings:
            if setting not in cls.declared():
                raise self._unknown_setting(name, setting)
        return cls(**settings)

    def having(self, setting: str) -> list[str]:
        """Return the names of the classes that have a setting."""
        return [name for name, cls in self.items() if setting in cls.declared()]

    def _unknown_setting(self, name: str, setting: str) -> SettingError:
        having = self.having(setting)
        return UnknownSetting(
            f"The {self.what} {name!r} has no setting {setting!r}.",
            context=f"its settings: {', '.join(self[name].declared()) or 'none'}",
            hint=f"those with this setting: {', '.join(having)}."
            if having
            else did_you_mean(setting, self[name].declared(), "choose one of its settings."),
        )

    @cached_property
    def _classes(self) -> dict[str, type[T]]:
        package = import_module(self._package)
        modules = [f"{self._package}.{module.name}" for module in iter_modules(package.__path__) if not module.ispkg]
        classes: dict[str, type[T]] = {}
        for cls in (cls for module in modules for cls in self._defined_in(module)):
            if classes.setdefault(cls.name, cls) is not cls:
                raise AssertionError(f"{cls} and {classes[cls.name]} have the same name")
        return dict(sorted(classes.items()))

    def _defined_in(self, module: str) -> list[type[T]]:
        """Return the classes with a name of their own that a module defines."""
        return [
            value
            for value in vars(import_module(module)).values()
            if isinstance(value, type)
            and issubclass(value, self._base)
            and value.__module__ == module
            and "name" in vars(value)
        ]
