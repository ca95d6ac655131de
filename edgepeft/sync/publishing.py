"""Publish rounds: a new adapter (``publish``), or an earlier one again (``rollback``); section 8.2 of the SPEC."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from edgepeft.intake.checks import MAX_HEADER_BYTES
from edgepeft.sync.bundles import keep_bundle, send_bundle
from edgepeft.sync.errors import ForeignBundle, NoSuchRound
from edgepeft.sync.keys import HostKey, Keys
from edgepeft.sync.transports import HostTransport, open_remote
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.bundle.bundle import ADAPTER, Bundle, checked_parameters
from edgepeft_runtime.bundle.specs import FileEntry
from edgepeft_runtime.errors import BadSetting
from edgepeft_runtime.files.durable import make_folder, write_atomically, writing
from edgepeft_runtime.files.tensorfile import read_tensors
from edgepeft_runtime.fleet import rounds, signatures
from edgepeft_runtime.fleet.rounds import CLIP, Latest, LatestSignatures, Round, RoundLimits

DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Terms:
    """The terms of a round for updates; see ``Round``.

    Args:
        days: Days until the round expires; ``None``: never.
        steps: Largest number of optimizer steps of a device; ``None``: no limit.
    """

    max_update_norm: float | None = None
    norm_action: str = CLIP
    max_staleness: int = 1
    min_devices: int = 1
    days: float | None = 30.0
    steps: int | None = None

    def __post_init__(self) -> None:
        above = "a number above 0"
        checks = {
            "max_update_norm": (self.max_update_norm is None or 0 < self.max_update_norm < float("inf"), above),
            "norm_action": (self.norm_action in (rounds.CLIP, rounds.REFUSE), f"{rounds.CLIP} or {rounds.REFUSE}"),
            "max_staleness": (0 <= self.max_staleness <= rounds.MAX_STALENESS, f"0 to {rounds.MAX_STALENESS}"),
            "min_devices": (self.min_devices >= 0, "0 or more"),
            "days": (self.days is None or 0 < self.days < 10**6, above),
            "steps": (self.steps is None or self.steps >= 1, "1 or more"),
        }
        for name, (fits, allowed) in checks.items():
            if not fits:
                raise BadSetting(name, getattr(self, name), allowed)


def publish(
    bundle: str | Path | Bundle,
    workspace: str | Path | Workspace,
    remotes: Iterable[str | Path] = (),
    *,
    adapter: str | Path | None = None,
    terms: Terms | None = None,
    with_bundle: bool = False,
    another: bool = False,
    now: float | None = None,
) -> Round:
    """Publish the next round, and write it to the remotes that devices read.

    The call is idempotent: if the newest round has this adapter and these terms and has not expired, that round is
    written again.

    Args:
        bundle: The campaign's bundle, which is the same in all rounds.
        workspace: The host's workspace, with its key.
        remotes: Folders and other addresses. The files of the round are written first, ``latest.json`` last.
        adapter: The adapter that devices start from, with the bundle's parameters; ``None``: the bundle's own.
        terms: The terms for updates.
        with_bundle: Send the bundle with the round. Files that a remote has are not sent again, and later rounds name
            the bundle too. Without it, devices must have the bundle already, by hand or from the round before.
        another: Make a round even if the newest is the same.
        now: Seconds since 1970; ``None``: the present time.

    Raises:
        SyncError: The workspace has no key, or belongs to another bundle.
        EdgepeftError: The adapter does not fit the bundle, or a remote cannot be written.
    """
    workspace = Workspace.of(workspace)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    path = bundle.file(ADAPTER) if adapter is None else Path(adapter)
    checked_parameters(read_tensors(path).tensors, bundle.manifest, f"The adapter {path}")
    key, content = Keys(workspace).host(), path.read_bytes()
    with workspace.locked():
        _keep_manifest(workspace, bundle)
        when, latest = int(time.time() if now is None else now), workspace.latest()
        newest = None if latest is None else workspace.round(latest.round)
        made = _next(key, bundle, content, terms or Terms(), when, newest)
        if with_bundle:
            made = replace(made, bundle=keep_bundle(workspace.published, bundle))
        if newest is not None and not another and _is_same(made, newest):
            made = newest
        else:
            commit(workspace, key, made, content)
        _send(workspace, made, remotes)
    return made


def rollback(
    workspace: str | Path | Workspace, to: int, remotes: Iterable[str | Path] = (), *, now: float | None = None
) -> Round:
    """Publish an earlier round's adapter and bundle again, bit for bit, as a new round: devices never go back.

    If the newest round has them already, that round is written again.

    Args:
        workspace: The host's workspace.
        to: The number of the round to restore.
        remotes: As for ``publish``.
        now: Seconds since 1970; ``None``: the present time.
    """
    workspace, when = Workspace.of(workspace), int(time.time() if now is None else now)
    key = Keys(workspace).host()
    with workspace.locked():
        latest, old = workspace.newest(), workspace.round(to)
        if to >= latest.round:
            raise NoSuchRound(f"Round {to} is the newest.", context=None, hint="name the one to restore.")
        made = workspace.round(latest.round)
        bundle = old.bundle or made.bundle
        if (made.adapter, made.bundle) != (old.adapter, bundle):
            lasts = _duration(old)
            made = replace(
                old,
                round=latest.round + 1,
                previous=latest.round_sha256,
                restores=to,
                bundle=bundle,
                created=when,
                expires=None if lasts is None else when + lasts,
            )
            commit(workspace, key, made, workspace.adapter(to).read_bytes())
        _send(workspace, made, remotes)
    return made


def mirror(workspace: str | Path | Workspace, remotes: Iterable[str | Path]) -> Latest:
    """Write all of the newest round to remotes again, for a stick that was not plugged in or a damaged copy."""
    workspace = Workspace.of(workspace)
    with workspace.locked():
        latest = workspace.newest()
        _send(workspace, workspace.round(latest.round), remotes, resend=True)
    return latest


def _next(key: HostKey, bundle: Bundle, adapter: bytes, terms: Terms, now: int, newest: Round | None) -> Round:
    return Round(
        campaign=key.campaign,
        round=1 if newest is None else newest.round + 1,
        previous=None if newest is None else newest.sha256,
        restores=None,
        created=now,
        expires=None if terms.days is None else now + max(1, int(terms.days * DAY)),
        base_sha256=bundle.base_sha256,
        adapter=FileEntry(signatures.sha256(adapter), len(adapter)),
        bundle=None if newest is None else newest.bundle,
        tensors=bundle.manifest.parameters,
        max_update_norm=terms.max_update_norm,
        norm_action=terms.norm_action,
        max_staleness=terms.max_staleness,
        min_devices=terms.min_devices,
        # Not this adapter's size: the plain indices of an update may need more bytes than those of an aggregate.
        limits=RoundLimits(bundle.manifest.files[ADAPTER].bytes + MAX_HEADER_BYTES, terms.steps),
    )


def _is_same(made: Round, newest: Round) -> bool:
    """Return whether a round would only repeat the newest one, which has not expired."""
    again = replace(
        made,
        round=newest.round,
        previous=newest.previous,
        restores=newest.restores,
        created=newest.created,
        expires=newest.expires,
    )
    expired = newest.expires is not None and made.created >= newest.expires
    return again == newest and _duration(made) == _duration(newest) and not expired


def _duration(round_: Round) -> int | None:
    return None if round_.expires is None else round_.expires - round_.created


def _keep_manifest(workspace: Workspace, bundle: Bundle) -> None:
    """Store the manifest of the first round's bundle, which is the campaign's, and compare later ones with it."""
    if not workspace.manifest.exists():
        write_atomically(workspace.manifest, [bundle.manifest.to_json().encode()])
    kept = workspace.bundle_manifest()
    if (kept.base_sha256, kept.parameters) != (bundle.base_sha256, bundle.manifest.parameters):
        raise ForeignBundle(
            "This workspace belongs to another bundle.",
            context=f"base of the workspace {kept.base_sha256}, of the bundle {bundle.base_sha256}",
            hint="start another campaign in another workspace.",
        )


def commit(workspace: Workspace, key: HostKey, made: Round, adapter: bytes) -> None:
    """Write the round, the signatures of the old and the new latest.json, then that file, which publishes the round."""
    folder = workspace.published / rounds.folder(made.round)
    make_folder(folder)
    write_atomically(folder / rounds.ADAPTER_FILE, [adapter])
    write_atomically(folder / rounds.ROUND_FILE, [made.to_bytes()])
    old, new = workspace.latest(), Latest(made.campaign, made.round, made.sha256, made.created, made.expires)
    both = [latest.to_bytes() for latest in (old, new) if latest is not None]
    signed = LatestSignatures({signatures.sha256(latest): key.sign(latest) for latest in both})
    write_atomically(workspace.published / rounds.LATEST_SIGNATURES, [signed.to_bytes()])
    write_atomically(workspace.published / rounds.LATEST_FILE, [new.to_bytes()])


def _send(workspace: Workspace, round_: Round, remotes: Iterable[str | Path], *, resend: bool = False) -> None:
    folder = rounds.folder(round_.round)
    workspace.adapter(round_.round)  # raises if the published file has changed
    names = (f"{folder}/{rounds.ADAPTER_FILE}", f"{folder}/{rounds.ROUND_FILE}")
    for remote in [_transport(remote) for remote in remotes]:
        if round_.bundle is not None:
            send_bundle(workspace.published, round_.bundle, remote, resend=resend)
        for name in (*names, rounds.LATEST_SIGNATURES, rounds.LATEST_FILE):
            remote.put(name, (workspace.published / name).read_bytes())


def _transport(remote: str | Path) -> HostTransport:
    """Return the transport to a remote to publish to; a missing folder is created."""
    folder = str(remote).removeprefix("file://")
    if "://" not in folder:
        with writing(folder):
            make_folder(Path(folder))
    return open_remote(remote)
