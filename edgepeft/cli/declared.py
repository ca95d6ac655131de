"""Options for the settings that methods, optimizers, losses and target formats declare."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import click

from edgepeft.cli.choice import Choice
from edgepeft_runtime.registry import Registry
from edgepeft_runtime.settings import Named, Setting

F = TypeVar("F", bound=Callable[..., object])
T = TypeVar("T", bound=Named)


class SectionedCommand(click.Command):
    """A command whose help shows the options of settings in sections of their own."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a section first."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _SettingOption(click.Option):
    """An option of one setting."""

    section: str


class Declared(Generic[T]):
    """The options of a registry: one for each setting that its classes declare.

    Args:
        registry: The registry; its ``what`` prefixes the names of the parameters.
    """

    def __init__(self, registry: Registry[T]) -> None:
        self.registry = registry
        self._prefix = f"{registry.what}__"

    def settings(self, command: F) -> F:
        """Add an option for each setting that any class of the registry declares."""
        owners: dict[str, list[str]] = {}
        for name, cls in self.registry.items():
            for setting in cls.declared():
                owners.setdefault(setting, []).append(name)
        for setting in reversed(owners):
            command = self._option(setting, owners[setting])(command)
        return command

    def given(self, options: dict[str, object]) -> dict[str, object]:
        """Remove the settings from a command's options, and return those that were given."""
        names = [name for name in options if name.startswith(self._prefix)]
        values = {name.removeprefix(self._prefix): options.pop(name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    def make(self, name: str, given: Mapping[str, object]) -> T:
        """Return an instance of a name, with the settings that were given.

        Raises:
            click.UsageError: It has no such setting.
            SettingError: The name is unknown, or a value is out of range.
        """
        declared = self.registry.find(name).declared()
        for setting in given:
            if setting not in declared:
                self.refuse(setting, f"cannot be used with --{self.registry.what} {name}")
        return self.registry.make(name, **given)

    def refuse(self, setting: str, why: str) -> None:
        """Raise a usage error for a setting, which lists the names that have it."""
        owners = self.registry.having(setting)
        option = self.registry[owners[0]].declared()[setting].option
        raise click.UsageError(f"--{option} {why}; a {self.registry.what} that has it: {', '.join(owners)}.")

    def _option(self, setting: str, owners: list[str]) -> Callable[[F], F]:
        classes = [self.registry[name] for name in owners]
        declared = _most_common([cls.declared()[setting] for cls in classes])
        kind, several, *_ = classes[0].kinds()[setting]
        choices = list(dict.fromkeys(str(choice) for cls in classes for choice in cls.declared()[setting].choices))
        option = click.option(
            f"{self._prefix}{setting}",
            f"--{declared.option}{f'/--no-{declared.option}' if kind is bool else ''}",
            cls=_SettingOption,
            type=Choice(choices) if choices else None if kind is bool else click.STRING if several else kind,
            multiple=several,
            callback=_list_parser(kind, declared.words) if several else None,
            default=None,
            metavar="|".join(["A,B", *(["FILE"] if kind is float else []), *declared.words]) if several else None,
            help=f"{declared.help}  [{'; '.join(self._notes(setting, owners, declared))}]",
        )

        def add(command: F) -> F:
            command = option(command)
            vars(command)["__click_params__"][-1].section = f"Settings of a {self.registry.what}"
            return command

        return add

    def _notes(self, setting: str, owners: list[str], declared: Setting) -> list[str]:
        """Return bounds, defaults, and the names that have the setting."""
        notes = [declared.allowed] if declared.allowed and not declared.choices else []
        defaults = {name: shown(self.registry[name].defaults()[setting]) for name in owners}
        first = next(iter(defaults.values()))
        others = "".join(f", {name} {text}" for name, text in defaults.items() if text != first)
        notes += [f"default: {first}{others}"] if first else []
        return [*notes, ", ".join(owners)] if len(owners) < len(self.registry) else notes or ["all"]


def _most_common(declared: Sequence[Setting]) -> Setting:
    """Return the declaration that most classes share, which describes the option for all."""
    return max(declared, key=list(declared).count)


def summary(cls: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    return " ".join((cls.__doc__ or "").partition("\n\n")[0].replace("``", "").split())


def shown(default: object) -> str:
    """Return a default as it is typed on the command line; empty if there is none."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _list_parser(
    kind: type, words: Sequence[str]
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], tuple[object, ...] | str | None]:
    def read(
        _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
    ) -> tuple[object, ...] | str | None:
        if len(texts) == 1 and texts[0] in words:
            return texts[0]
        try:
            if kind is float and len(texts) == 1 and Path(texts[0]).is_file():
                texts = tuple(re.split(r"[\s,;]+", Path(texts[0]).read_text("utf-8").strip("[] \n\t\r,;")))
            return tuple(kind(part) for text in texts for part in split_names(text)) or None
        except ValueError:
            raise click.BadParameter(f"{','.join(texts)!r} is not a list of numbers.") from None

    return read


def split_names(text: str) -> tuple[str, ...]:
    """Split names at commas; a name with a comma is put in double quotes.

    Raises:
        click.BadParameter: A name is empty, or a quote is not closed.
    """
    try:
        parts = tuple(part.strip() for part in next(csv.reader([text], skipinitialspace=True, strict=True), []))
    except csv.Error as failure:
        raise click.BadParameter(f"{text!r}: {failure}.") from None
    if not parts or not all(parts):
        raise click.BadParameter(f"{text!r} has an empty name.")
    return parts
