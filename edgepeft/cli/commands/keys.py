"""``edgepeft keys``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH, workspace_option
from edgepeft_runtime.errors import CannotWriteFile

_ALGORITHMS = ("hmac-sha256", "ed25519")


@click.group("keys")
def command() -> None:
    """Make a fleet's key, register and revoke devices. Key files can be read by their owner alone."""


@command.command("new")
@click.argument("campaign")
@workspace_option
def new(campaign: str, workspace: Path) -> None:
    """Make the host's key pair for CAMPAIGN, the fleet's name."""
    from edgepeft.sync import Keys, Workspace

    key = Keys(Workspace(workspace)).create(campaign)
    click.echo(f"campaign {campaign}, host key {key.public.hex()}")


@command.command("add")
@click.argument("device")
@workspace_option
@click.option("--out", type=PATH, required=True, help="File to bring to the device, for `edgepeft join --identity`.")
@click.option(
    "--algorithm",
    type=click.Choice(_ALGORITHMS),
    default=_ALGORITHMS[0],
    show_default=True,
    help="How it signs; ed25519 needs the package cryptography on the device.",
)
def add(device: str, workspace: Path, out: Path, algorithm: str) -> None:
    """Register DEVICE, and write the file that tells it who it is. It holds a secret: bring it there by a safe way.

    A call that was interrupted is finished by the same call.
    """
    from edgepeft.sync import Keys, Workspace

    if not out.parent.is_dir():
        context = f"{out.parent} is no folder."
        raise CannotWriteFile(f"Cannot write {out}.", context=context, hint="make the folder.")
    Keys(Workspace(workspace)).add(device, out, algorithm)
    click.echo(f"registered {device}; bring {out} to it, and delete it here.")


@command.command("revoke")
@click.argument("device")
@workspace_option
def revoke(device: str, workspace: Path) -> None:
    """Take nothing of DEVICE any more; what was accepted of it does not count any more either."""
    from edgepeft.sync import Keys, Workspace
    from edgepeft.sync.keys import REVOKED

    Keys(Workspace(workspace)).set_state(device, REVOKED)
    click.echo(f"revoked {device}.")


@command.command("restore")
@click.argument("device")
@workspace_option
def restore(device: str, workspace: Path) -> None:
    """Take updates of DEVICE again, after it was revoked, or blocked for signing two updates under one number."""
    from edgepeft.sync import Keys, Ledger, Workspace
    from edgepeft.sync.keys import ACTIVE

    host = Workspace(workspace)
    Keys(host).set_state(device, ACTIVE)
    with host.locked(), Ledger(host.ledger) as ledger:
        ledger.unblock(device)
        ledger.commit()
    click.echo(f"restored {device}.")
