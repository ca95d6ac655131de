"""``edgepeft methods``."""

from __future__ import annotations

import click

from edgepeft.cli.declared import shown, summary
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.methods.base import Method
from edgepeft.methods.registry import METHODS


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the methods, each with the options of its settings, their defaults and their bounds."""
    if as_json:
        write_json({name: _method(cls) for name, cls in METHODS.items()})
        return
    for name, cls in METHODS.items():
        click.echo(f"{name}: {summary(cls)}")
        for setting, declared in cls.declared().items():
            notes = [f"default: {text}" for text in [shown(cls.defaults()[setting])] if text]
            notes += [declared.allowed] if declared.allowed else []
            click.echo(f"  --{declared.option:20} {declared.help}" + (f"  [{'; '.join(notes)}]" if notes else ""))


def _method(cls: type[Method]) -> dict[str, object]:
    settings = {
        setting: {
            "option": f"--{declared.option}",
            "help": declared.help,
            "default": cls.defaults()[setting],
            "allowed": declared.allowed,
        }
        for setting, declared in cls.declared().items()
    }
    return {"summary": summary(cls), "onnx": cls.supports_onnx, "settings": settings}
