"""``edgepeft pull``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH


@click.command("pull")
@click.argument("places", type=PATH, nargs=-1, required=True, metavar="PLACE...")
@click.option("--into", type=PATH, required=True, help="Directory to keep the updates in.")
@click.option("--bundle", type=PATH, help="Refuse updates that do not belong to this bundle, too.")
def command(places: tuple[Path, ...], into: Path, bundle: Path | None) -> None:
    """Fetch the updates in each PLACE, a folder, and keep those that are whole, each under its hash.

    Pulling again changes nothing. What is refused stays where it is.
    """
    from edgepeft.sync import pull

    found = pull(places, into, bundle)
    for received in found.accepted:
        click.echo(f"accepted {received.source} as {received.path.name}")
    for received in found.already_there:
        click.echo(f"already there {received.source} as {received.path.name}")
    for refused in found.refused:
        click.echo(f"refused {refused.source} ({refused.reference}): {refused.reason}", err=True)
    click.echo(
        f"{len(found.accepted)} accepted, {len(found.already_there)} already there, {len(found.refused)} refused"
    )
