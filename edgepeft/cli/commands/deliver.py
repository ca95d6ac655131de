"""``edgepeft deliver``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH, ca_option, device_option


@click.command("deliver")
@click.argument("update", type=PATH)
@click.argument("remote")
@device_option
@ca_option
def command(update: Path, remote: str, device: Path, ca_file: Path | None) -> None:
    """Leave UPDATE, signed, at REMOTE: a folder or an http(s):// address. Repeating it does nothing."""
    from edgepeft_runtime.fleet.delivering import deliver

    done = deliver(update, remote, device, ca_file=ca_file)
    delivery = done.delivery
    what = "was there already" if done.repeated else "delivered"
    click.echo(f"{what}: update {delivery.sequence} of {delivery.device}, round {delivery.round}, {delivery.sha256}")
