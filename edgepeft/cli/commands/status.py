"""``edgepeft status``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from edgepeft.cli.options import json_option, workspace_option


@click.command("status")
@workspace_option
@json_option
def command(workspace: Path, as_json: bool) -> None:
    """Show what a fleet has published and received: rounds, devices, refusals by code."""
    from edgepeft.sync import status

    found = status(workspace)
    if as_json:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False, indent=2))
        return
    click.echo(f"campaign {found.campaign}, host key {found.host_key}")
    for number in found.rounds:
        newest = "  <- newest" if found.latest is not None and number.round == found.latest.round else ""
        back = f", the adapter of round {number.restores} again" if number.restores is not None else ""
        ends = "" if number.expires is None else f", until {_day(number.expires)}"
        click.echo(
            f"round {number.round}: {number.updates} updates of {number.devices} devices"
            f" (needs {number.min_devices}), published {_day(number.created)}{ends}{back}{newest}"
        )
    for device in found.devices:
        last = "" if device.last is None else f", last for round {device.round} on {_day(device.last)}"
        click.echo(f"device {device.device}: {device.state}, {device.updates} updates{last}")
    for code, count in found.refused.items():
        click.echo(f"refused {count} ({code})")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
