"""``edgepeft deliver``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH, ca_option, home_option


@click.command("deliver")
@click.argument("update", type=PATH)
@click.argument("place")
@home_option
@ca_option
def command(update: Path, place: str, home: Path, ca_file: Path | None) -> None:
    """Leave UPDATE, signed, at PLACE: a folder or an http(s):// address. To repeat it does nothing."""
    from edgepeft_runtime.fleet.delivering import deliver

    done = deliver(update, place, home, ca_file=ca_file)
    delivery = done.delivery
    what = "was there already" if done.repeated else "delivered"
    click.echo(f"{what}: update {delivery.sequence} of {delivery.device}, round {delivery.round}, {delivery.sha256}")
