"""``edgepeft pull``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.options import PATH


@click.command("pull")
@click.argument("places", nargs=-1, metavar="PLACE...")
@click.option("--into", type=PATH, help="Directory to keep the updates in.")
@click.option("--bundle", type=PATH, help="Refuse updates that do not belong to this bundle, too.")
@click.option("--workspace", type=PATH, help="The host's workspace, instead of --into: verify what devices delivered.")
@click.option(
    "--remove", is_flag=True, help="With --workspace: remove from each PLACE what was accepted or quarantined."
)
def command(
    places: tuple[str, ...], into: Path | None, bundle: Path | None, workspace: Path | None, remove: bool
) -> None:
    """Fetch the updates at each PLACE, and keep those that are whole, each under its hash.

    With --into, a PLACE is a folder of updates. What is refused stays where it is.

    With --workspace, a PLACE is a folder or a remote address (s3://, ssh://, memory://) that devices of a fleet deliver
    to; what `edgepeft serve` received is always looked at, and removed once it is kept. Every update must be signed and
    of a published round; what is refused is kept in quarantine.

    Pulling again changes nothing.
    """
    if (workspace is None) == (into is None):
        raise click.UsageError("Give either --into or --workspace.")
    if workspace is not None:
        if bundle is not None:
            raise click.UsageError("--bundle goes with --into; a fleet's workspace knows its bundle.")
        _collect(places, workspace, remove)
        return
    if not places or remove:
        raise click.UsageError("--into needs a PLACE." if not places else "--remove goes with --workspace.")
    _pull(places, into or Path(), bundle)


def _pull(places: tuple[str, ...], into: Path, bundle: Path | None) -> None:
    from edgepeft.sync import pull

    found = pull(places, into, bundle)
    for received in found.accepted:
        click.echo(f"accepted {received.source} as {received.path.name}")
    for received in found.already_there:
        click.echo(f"already there {received.source} as {received.path.name}")
    for refused in found.refused:
        click.echo(f"refused {refused}", err=True)
    click.echo(
        f"{len(found.accepted)} accepted, {len(found.already_there)} already there, {len(found.refused)} refused"
    )


def _collect(places: tuple[str, ...], workspace: Path, remove: bool) -> None:
    from edgepeft.sync import Workspace, collect
    from edgepeft_runtime.train.update import notice_unchanged

    host = Workspace(workspace)
    received = [host.received] if host.received.is_dir() else []
    found = collect([*received, *places], host, remove=remove)
    for entry in found.accepted:
        clipped = "" if entry.scale == 1.0 else f", clipped to {entry.scale:.3g} of it"
        click.echo(
            f"accepted update {entry.sequence} of {entry.device}, round {entry.round}: norm {entry.norm:.4g}{clipped}"
        )
        if entry.norm == 0.0:
            notice_unchanged(f"Update {entry.sequence} of {entry.device}")
    for name in found.waiting:
        click.echo(f"waiting for the rest of {name}", err=True)
    for refused in found.refused:
        kept = "not kept: the quarantine is full" if refused.kept is None else f"kept in {refused.kept}"
        click.echo(f"refused {refused}\n{kept}", err=True)
    click.echo(
        f"{len(found.accepted)} accepted, {found.already_there} already there, "
        f"{len(found.waiting)} waiting, {len(found.refused)} refused"
    )
