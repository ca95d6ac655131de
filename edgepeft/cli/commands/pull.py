"""``edgepeft pull``."""

from __future__ import annotations

from pathlib import Path

import click

from edgepeft.cli.paths import OUTPUT, PATH
from edgepeft.cli.screen.output import json_option, write_json
from edgepeft.cli.screen.verbosity import say
from edgepeft_runtime.notices import notice


@click.command("pull")
@click.argument("remotes", nargs=-1, metavar="REMOTE...")
@click.option("--into", type=OUTPUT, help="Directory to keep the updates in.")
@click.option("--bundle", type=PATH, help="Also refuse updates that do not belong to this bundle.")
@click.option(
    "--workspace",
    type=PATH,
    metavar="WORKSPACE",
    help="Workspace of the host, instead of --into; signed deliveries are verified.",
)
@click.option(
    "--remove", is_flag=True, help="With --workspace: remove accepted and quarantined files from each REMOTE."
)
@json_option
def command(
    remotes: tuple[str, ...],
    into: Path | None,
    bundle: Path | None,
    workspace: Path | None,
    remove: bool,
    as_json: bool,
) -> None:
    """Collect the updates at each REMOTE, and keep each under its hash.

    With --into, a REMOTE is a folder of updates. Refused files stay where they are.

    With --workspace, a REMOTE is a folder or an address (s3://, ssh://, memory://) that the devices of a fleet deliver
    to. Files that `edgepeft serve` has received are always collected, and removed once stored. An update must be signed
    and belong to a published round. Refused updates are kept in quarantine.

    The command is idempotent.
    """
    if (workspace is None) == (into is None):
        raise click.UsageError("Give either --into or --workspace.")
    if workspace is not None:
        if bundle is not None:
            raise click.UsageError("--bundle requires --into; a fleet's workspace knows its bundle.")
        _collect(remotes, workspace, remove, as_json)
        return
    if not remotes or remove:
        raise click.UsageError("--into needs a REMOTE." if not remotes else "--remove requires --workspace.")
    _pull(remotes, into or Path(), bundle, as_json)


def _pull(remotes: tuple[str, ...], into: Path, bundle: Path | None, as_json: bool) -> None:
    from edgepeft.sync import pull

    pulled = pull(remotes, into, bundle)
    if as_json:
        write_json(pulled)
        return
    for received in pulled.accepted:
        say(f"accepted {received.source} as {received.path.name}")
    for received in pulled.already_there:
        say(f"already there {received.source} as {received.path.name}")
    for refusal in pulled.refused:
        click.echo(f"refused {refusal}", err=True)
    say(f"{len(pulled.accepted)} accepted, {len(pulled.already_there)} already there, {len(pulled.refused)} refused")
    if not (pulled.accepted or pulled.already_there or pulled.refused):
        notice(f"no *.safetensors in {', '.join(remotes)}; folders in them are not searched (a fleet: --workspace).")


def _collect(remotes: tuple[str, ...], workspace: Path, remove: bool, as_json: bool) -> None:
    from edgepeft.sync import Workspace, collect
    from edgepeft_runtime.train.update import notice_unchanged

    host = Workspace(workspace)
    received = [host.received] if host.received.is_dir() else []
    collected = collect([*received, *remotes], host, remove=remove)
    if as_json:
        write_json(collected)
        return
    for entry in collected.accepted:
        clipped = "" if entry.scale == 1.0 else f", clipped to {entry.scale:.3g} of it"
        say(f"accepted update {entry.sequence} of {entry.device}, round {entry.round}: norm {entry.norm:.4g}{clipped}")
        if entry.norm == 0.0:
            notice_unchanged(f"Update {entry.sequence} of {entry.device}")
    for name in collected.waiting:
        say(f"waiting for the rest of {name}", err=True)
    for refusal in collected.refused:
        kept = "not kept: the quarantine is full" if refusal.kept is None else f"kept in {refusal.kept}"
        click.echo(f"refused {refusal}\n{kept}", err=True)
    say(
        f"{len(collected.accepted)} accepted, {collected.already_there} already there, "
        f"{len(collected.waiting)} waiting, {len(collected.refused)} refused"
    )
