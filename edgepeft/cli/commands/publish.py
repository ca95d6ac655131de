"""``edgepeft publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.options import workspace_option
from edgepeft.cli.paths import PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.verbosity import say


@click.command("publish")
@click.argument("bundle", type=PATH)
@click.argument("remotes", nargs=-1, metavar="[REMOTE]...")
@workspace_option
@click.option("--adapter", type=PATH, help="Adapter that devices start from.  [default: the bundle's own]")
@click.option(
    "--max-norm", "max_update_norm", type=click.FloatRange(0, min_open=True), help="Largest update (L2 norm)."
)
@click.option(
    "--norm-action",
    type=Choice(["clip", "refuse"]),
    default="clip",
    show_default=True,
    help="Treatment of larger updates.",
)
@click.option(
    "--max-staleness",
    type=click.IntRange(0, 31),
    default=1,
    show_default=True,
    help="Rounds that an update may be late while this one is the newest.",
)
@click.option(
    "--min-devices", type=click.IntRange(0), default=1, show_default=True, help="Devices needed to close the round."
)
@click.option(
    "--days",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Days until the round expires.",
)
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps a device may take.")
@click.option(
    "--with-bundle", is_flag=True, help="Send BUNDLE with this round and later ones; unchanged files are sent once."
)
@click.option("--again", is_flag=True, help="Send the newest round to each REMOTE again, instead of making one.")
@click.option("--another", is_flag=True, help="Make a round even if the newest has this adapter and these terms.")
@json_option
def command(
    bundle: Path,
    remotes: tuple[str, ...],
    workspace: Path,
    adapter: Path | None,
    with_bundle: bool,
    again: bool,
    another: bool,
    as_json: bool,
    **terms: Any,
) -> None:
    """Sign the next round of BUNDLE's fleet, and send it to each REMOTE: a folder or an address (s3://).

    `edgepeft serve` serves it to devices without any REMOTE. Repeating the command sends the same round again.
    """
    from edgepeft.sync import Terms, Workspace, mirror, publish

    before = Workspace(workspace).latest()
    if again:
        latest = mirror(workspace, remotes)
        number, campaign = latest.round, latest.campaign
    else:
        made = publish(
            bundle,
            workspace,
            remotes,
            adapter=adapter,
            terms=Terms(**terms),
            with_bundle=with_bundle,
            another=another,
        )
        number, campaign = made.round, made.campaign
    new = before is None or before.round != number
    if as_json:
        write_json({"campaign": campaign, "round": number, "new": new, "sent_to": remotes})
        return
    if again:
        say(f"round {number} of {campaign} again")
    elif new:
        say(f"published round {number} of {campaign}: adapter {made.adapter.sha256}")
    else:
        say(f"round {number} of {campaign} is the same (--another makes one more)", err=True)
    for remote in remotes:
        say(f"sent to {remote}")
