"""``edgepeft new``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.paths import OUTPUT
from edgepeft.cli.screen.verbosity import say


@click.command("new")
@click.argument("kind", type=Choice(["text", "image", "table"]), metavar="text|image|table")
@click.argument("folder", type=OUTPUT, metavar="DIR")
def command(kind: str, folder: Path) -> None:
    """Write a small project to DIR: sample data, and scripts that prepare, train and merge. It runs as it is."""
    from edgepeft.projects import create

    names = create(kind, folder)
    say(f"{folder}: {', '.join(names)}")
    say(f"cd {folder} && python prepare.py && python train.py && python merge.py")
