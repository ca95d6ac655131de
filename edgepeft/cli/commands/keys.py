"""``edgepeft keys``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.choice import Choice, Group
from edgepeft.cli.options import workspace_option
from edgepeft.cli.paths import OUTPUT, PATH
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
@click.option("--out", type=OUTPUT, required=True, help="File to copy to the device, for `edgepeft join --identity`.")
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


@command.command("link")
@click.argument("identity", type=PATH)
@click.option("--page", required=True, help="Address of the web page that trains, such as https://page.example/.")
@click.option("--server", required=True, help="Address of `edgepeft serve`, as the phone reaches it.")
@click.option("--qr", is_flag=True, help="Print the link as a QR code too. Needs the package segno.")
def link(identity: Path, page: str, server: str, qr: bool) -> None:
    """Print the link that passes IDENTITY, a file of `edgepeft keys add`, to a web page on a phone.

    The link contains the secret: send it to nobody else, and delete the file afterwards.
    """
    from edgepeft.sync.links import link_of, qr_code
    from edgepeft_runtime.fleet.identity import Identity

    text = link_of(Identity.read(identity), page, server)
    code = qr_code(text) if qr else None
    say(text)
    if code is not None:
        say(code)


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
