"""The rounds that a device has joined, those in its slots and earlier ones: an update may be delivered rounds late."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edgepeft_runtime.errors import FleetError
from edgepeft_runtime.files.durable import make_folder, write_atomically
from edgepeft_runtime.fleet import rounds
from edgepeft_runtime.fleet.rounds import MAX_ROUND_BYTES, MAX_STALENESS, Round

FOLDER = "rounds"


def remember(device: Path, round_: Round) -> None:
    """Keep a round's ``round.json``, and remove those for which every update would be too late.

    Raises:
        FleetError: it cannot be written.
    """
    make_folder(device / FOLDER)
    write_atomically(device / FOLDER / f"{rounds.folder(round_.round)}.json", [round_.to_bytes()])
    for old in _files(device)[MAX_STALENESS + 1 :]:
        with suppress(OSError):
            old.unlink()


def remembered(device: Path) -> Iterator[Round]:
    """Yield the stored rounds, newest first; damaged files are skipped."""
    for path in _files(device):
        with suppress(OSError, FleetError), path.open("rb") as file:
            yield Round.from_bytes(file.read(MAX_ROUND_BYTES))


def _files(device: Path) -> list[Path]:
    paths = (path for path in (device / FOLDER).glob("r*.json") if rounds.number_of(path.stem) is not None)
    return sorted(paths, reverse=True)
