"""``edgepeft keys``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.choice import Choice, Group
from edgepeft.cli.options import PATH, workspace_option
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.errors import CannotWriteFile

_ALGORITHMS = ("hmac-sha256", "ed25519")


@click.group("keys", cls=Group)
def command() -> None:
    """Create a fleet's key, register and revoke devices. Only the owner can read key files."""


@command.command("new")
@click.argument("campaign")
@workspace_option
def new(campaign: str, workspace: Path) -> None:
    """Create the host's key pair for CAMPAIGN, the fleet's name."""
    from edgepeft.sync import Keys, Workspace

    key = Keys(Workspace(workspace)).create(campaign)
    say(f"campaign {campaign}, host key {key.public.hex()}")


@command.command("add")
@click.argument("device")
@workspace_option
@click.option("--out", type=PATH, required=True, help="File to copy to the device, for `edgepeft join --identity`.")
@click.option(
    "--algorithm",
    type=Choice(_ALGORITHMS),
    default=_ALGORITHMS[0],
    show_default=True,
    help="Signature algorithm; ed25519 needs the package cryptography on the device.",
)
def add(device: str, workspace: Path, out: Path, algorithm: str) -> None:
    """Register DEVICE, and write its identity file. The file contains a secret: copy it to the device in a safe way.

    If the command was interrupted, run it again.
    """
    from edgepeft.sync import Keys, Workspace

    if not out.parent.is_dir():
        context = f"{out.parent} is not a folder."
        raise CannotWriteFile(f"Cannot write {out}.", context=context, hint="create the folder.")
    Keys(Workspace(workspace)).add(device, out, algorithm)
    say(f"registered {device}; copy {out} to it, and delete it here.")


@command.command("revoke")
@click.argument("device")
@workspace_option
def revoke(device: str, workspace: Path) -> None:
    """Refuse further updates of DEVICE. Updates that were accepted from it no longer count either."""
    from edgepeft.sync import Keys, Workspace
    from edgepeft.sync.keys import REVOKED

    Keys(Workspace(workspace)).set_state(device, REVOKED)
    say(f"revoked {device}.")


@command.command("restore")
@click.argument("device")
@workspace_option
def restore(device: str, workspace: Path) -> None:
    """Accept updates of DEVICE again, after it was revoked, or blocked for signing two updates under one number."""
    from edgepeft.sync import Keys, Ledger, Workspace
    from edgepeft.sync.keys import ACTIVE

    host = Workspace(workspace)
    Keys(host).set_state(device, ACTIVE)
    with host.locked(), Ledger(host.ledger) as ledger:
        ledger.unblock(device)
        ledger.commit()
    say(f"restored {device}.")
