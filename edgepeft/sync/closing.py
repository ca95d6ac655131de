"""The end of a round: what counts of it, for :func:`edgepeft.aggregate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft.sync.collecting import accepted
from edgepeft.sync.errors import SyncError
from edgepeft.sync.home import HostHome
from edgepeft_runtime.fleet.rounds import CLIP


@dataclass(frozen=True)
class Closing:
    """What the newest round comes to.

    Attributes:
        round: its number.
        adapter: what its devices started from.
        updates: the newest of each device that counts, in the order of hashes.
        late: how many of earlier rounds were accepted, and are left out: they started from another adapter.
        clip: the norm to which updates are shortened; ``None``: none is.
    """

    round: int
    adapter: Path
    updates: tuple[Path, ...]
    late: int
    clip: float | None


def closing(home: str | Path | HostHome) -> Closing:
    """What counts of the newest round.

    Raises:
        SyncError: nothing was published, or fewer devices have delivered than the round asks for (``too-few-devices``):
            it stays open.
    """
    home = home if isinstance(home, HostHome) else HostHome(home)
    newest = home.round(home.newest().round)
    found = accepted(home, newest.round)
    updates = tuple(path for entry, path in found if entry.round == newest.round)
    if len(updates) < max(1, newest.min_devices):
        raise SyncError(
            "too-few-devices",
            f"Round {newest.round} stays open: too few devices have delivered.",
            context=f"{len(updates)} devices, and it takes {max(1, newest.min_devices)}",
            hint="pull again when more have.",
        )
    clip = newest.max_update_norm if newest.norm_action == CLIP else None
    return Closing(newest.round, home.adapter(newest.round), updates, len(found) - len(updates), clip)
