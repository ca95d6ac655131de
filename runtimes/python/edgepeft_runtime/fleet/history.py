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


def remember(home: Path, number: Round) -> None:
    """Keep a round's ``round.json``, and those of no more rounds than an update may be late.

    Raises:
        FleetError: it cannot be written.
    """
    make_folder(home / FOLDER)
    write_atomically(home / FOLDER / f"{rounds.folder(number.round)}.json", [number.to_bytes()], error=FleetError)
    for old in _files(home)[MAX_STALENESS + 1 :]:
        with suppress(OSError):
            old.unlink()


def remembered(home: Path) -> Iterator[Round]:
    """The rounds that are kept, the newest first; a file that is damaged is passed over."""
    for path in _files(home):
        with suppress(OSError, FleetError), path.open("rb") as file:
            yield Round.from_bytes(file.read(MAX_ROUND_BYTES))


def _files(home: Path) -> list[Path]:
    found = (path for path in (home / FOLDER).glob("r*.json") if rounds.number_of(path.stem) is not None)
    return sorted(found, reverse=True)
