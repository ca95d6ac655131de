"""``edgepeft rollback``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import workspace_option
from edgepeft.cli.screen.verbosity import say


@click.command("rollback")
@click.argument("remotes", nargs=-1, metavar="[REMOTE]...")
@click.option("--to", type=click.IntRange(1), required=True, help="Round to restore.")
@workspace_option
def command(remotes: tuple[str, ...], to: int, workspace: Path) -> None:
    """Publish an earlier round's adapter again, bit for bit, as a new round: devices never go back."""
    from edgepeft.sync import Workspace, rollback

    before = Workspace(workspace).latest()
    made = rollback(workspace, to, remotes)
    if before is not None and before.round == made.round:
        say(f"round {made.round} of {made.campaign} has the adapter of round {to} already", err=True)
        return
    say(f"published round {made.round} of {made.campaign} with the adapter of round {to}: {made.adapter.sha256}")
