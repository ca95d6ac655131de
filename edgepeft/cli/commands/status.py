"""``edgepeft status``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from edgepeft.cli.options import workspace_option
from edgepeft.cli.screen.output import json_option


@click.command("status")
@workspace_option
@json_option
def command(workspace: Path, as_json: bool) -> None:
    """Show the rounds, the devices and the refusals (by code) of a fleet."""
    from edgepeft.sync import status

    fleet = status(workspace)
    if as_json:
        click.echo(json.dumps(fleet.to_dict(), ensure_ascii=False, indent=2))
        return
    click.echo(f"campaign {fleet.campaign}, host key {fleet.host_key}")
    for round_ in fleet.rounds:
        newest = "  <- newest" if fleet.latest is not None and round_.round == fleet.latest.round else ""
        back = f", the adapter of round {round_.restores} again" if round_.restores is not None else ""
        ends = "" if round_.expires is None else f", until {_day(round_.expires)}"
        click.echo(
            f"round {round_.round}: {round_.updates} updates of {round_.devices} devices"
            f" (needs {round_.min_devices}), published {_day(round_.created)}{ends}{back}{newest}"
        )
    for device in fleet.devices:
        last = "" if device.last is None else f", last for round {device.round} on {_day(device.last)}"
        click.echo(f"device {device.device}: {device.state}, {device.updates} updates{last}")
    for code, count in fleet.refused.items():
        click.echo(f"refused {count} ({code})")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
