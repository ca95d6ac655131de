"""``edgepeft methods``."""

from __future__ import annotations

import click

from edgepeft.cli.declared import shown, summary
from edgepeft.methods.registry import METHODS


@click.command("methods")
def command() -> None:
    """List the methods, each with the options of its settings, their defaults and their bounds."""
    for name, cls in METHODS.items():
        click.echo(f"{name}: {summary(cls)}")
        for setting, declared in cls.declared().items():
            notes = [f"default: {text}" for text in [shown(cls.defaults()[setting])] if text]
            notes += [declared.allowed] if declared.allowed else []
            click.echo(f"  --{declared.option:20} {declared.help}" + (f"  [{'; '.join(notes)}]" if notes else ""))
