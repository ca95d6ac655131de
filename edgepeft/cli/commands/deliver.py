"""``edgepeft deliver``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import ca_option, device_option
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.verbosity import say


@click.command("deliver")
@click.argument("update", type=PATH)
@click.argument("remote")
@device_option
@ca_option
def command(update: Path, remote: str, device: Path, ca_file: Path | None) -> None:
    """Sign UPDATE and deliver it to REMOTE, a folder or an http(s):// address. The command is idempotent."""
    from edgepeft_runtime.fleet.delivering import deliver

    result = deliver(update, remote, device, ca_file=ca_file)
    delivery = result.delivery
    what = "was there already" if result.repeated else "delivered"
    say(f"{what}: update {delivery.sequence} of {delivery.device}, round {delivery.round}, {delivery.sha256}")
