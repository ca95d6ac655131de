"""Close a round: choose the updates that count, for ``edgepeft.aggregate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgepeft.sync.collection.collecting import accepted
from edgepeft.sync.errors import TooFewDevices
from edgepeft.sync.workspace import Workspace
from edgepeft_runtime.fleet.rounds import CLIP


@dataclass(frozen=True)
class Closing:
    """The updates of the newest round that count.

    Attributes:
        round: Its number.
        adapter: The adapter that its devices started from.
        updates: The newest update of each device that counts, in the order of hashes, with the factor of its weight:
            1, or ``1 / sqrt(1 + s)`` where it started ``s`` rounds earlier (FedBuff, Nguyen et al., AISTATS 2022).
        earlier: The adapters of earlier rounds that late updates started from.
        clip: The norm to which updates are clipped; ``None``: updates are not clipped.
        left_out: How many late updates do not count.
    """

    round: int
    adapter: Path
    updates: Mapping[Path, float]
    earlier: tuple[Path, ...]
    clip: float | None
    left_out: int = 0


def closing(workspace: str | Path | Workspace, *, alike: bool = False) -> Closing:
    """Return the updates of the newest round that count.

    Args:
        workspace: The host's workspace.
        alike: Weight all updates alike, so late ones, and devices that have only those, do not count.

    Raises:
        SyncError: Nothing was published, or fewer devices have delivered than the round needs (``too-few-devices``);
            it stays open.
    """
    workspace = Workspace.of(workspace)
    newest = workspace.round(workspace.newest().round)
    collected = accepted(workspace, newest.round)
    counting = [(entry, path) for entry, path in collected if not alike or entry.round == newest.round]
    left_out = len(collected) - len(counting)
    if len(counting) < max(1, newest.min_devices):
        raise TooFewDevices(
            f"Round {newest.round} stays open: too few devices have delivered.",
            context=f"{len(counting)} devices, and {max(1, newest.min_devices)} are needed"
            + (f"\n{left_out} more have delivered late, and late updates do not count here" if left_out else ""),
            hint="pull again when more have.",
        )
    updates = {path: (1 + newest.round - entry.round) ** -0.5 for entry, path in counting}
    earlier = sorted({entry.round for entry, _ in counting} - {newest.round})
    clip = newest.max_update_norm if newest.norm_action == CLIP else None
    starts = tuple(map(workspace.adapter, earlier))
    return Closing(newest.round, workspace.adapter(newest.round), updates, starts, clip, left_out)
