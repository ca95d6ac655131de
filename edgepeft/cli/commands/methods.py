"""``edgepeft methods``."""

from __future__ import annotations

from typing import Any

import click

from edgepeft.cli.method_settings import described
from edgepeft.methods.registry import METHODS


@click.command("methods")
def command() -> None:
    """List the methods, each with its settings and their defaults, as ``prepare --setting NAME=VALUE`` takes them."""
    from edgepeft.methods.base import method_class

    for name in METHODS:
        cls = method_class(name)
        click.echo(f"{name}: {_first_sentence(cls)}")
        for setting, (kind, default) in described(cls).items():
            click.echo(f"  {setting}={_told(default)}  ({'a,b,c' if kind is tuple else kind.__name__})")


def _first_sentence(cls: type[Any]) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def _told(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None else str(default)
