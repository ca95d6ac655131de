"""The ledger: which update of which device was accepted when. What is in it is never taken twice."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgepeft.sync.errors import SyncError
from edgepeft_runtime.shown import quoted


@dataclass(frozen=True)
class Entry:
    """An accepted update.

    Args:
        sha256: hash of its file.
        round: the round it started from.
        device: who sent it.
        sequence: the device's count; no two updates of a device have the same.
        size: bytes of the file.
        norm: L2 norm of what it changes, over all floats.
        scale: what its changes are multiplied by when they are added up: below 1 where the norm was clipped.
        staleness: how many rounds had been published since its own when it was accepted.
        num_examples: examples trained on, as the device says. Not to be trusted.
        steps: optimizer steps, as the device says; likewise the losses.
        loss_before: before training, ``None``: unknown.
        loss_after: after training, ``None``: unknown.
        accepted: when, in seconds since 1970.
    """

    sha256: str
    round: int
    device: str
    sequence: int
    size: int
    norm: float
    scale: float
    staleness: int
    num_examples: int
    steps: int
    loss_before: float | None
    loss_after: float | None
    accepted: int


_COLUMNS = ", ".join(field.name for field in fields(Entry))
_SCHEMA = """
PRAGMA synchronous = EXTRA; -- a commit outlives a power cut: the folder is flushed after the journal is removed
CREATE TABLE IF NOT EXISTS accepted (
    sha256 TEXT PRIMARY KEY, round INTEGER NOT NULL, device TEXT NOT NULL, sequence INTEGER NOT NULL,
    size INTEGER NOT NULL, norm REAL NOT NULL, scale REAL NOT NULL, staleness INTEGER NOT NULL,
    num_examples INTEGER NOT NULL, steps INTEGER NOT NULL, loss_before REAL, loss_after REAL,
    accepted INTEGER NOT NULL, UNIQUE (device, sequence)
);
CREATE INDEX IF NOT EXISTS accepted_by_round ON accepted (round, device, sequence);
CREATE TABLE IF NOT EXISTS blocked (device TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS refused (
    id TEXT PRIMARY KEY, code TEXT NOT NULL, reason TEXT NOT NULL, source TEXT NOT NULL, at INTEGER NOT NULL
);
"""


_Values = tuple[Any, ...] | dict[str, Any]

_RESTORE = "restore it from a copy; without it, updates that were used once could be used again."

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float,),
    "float | None": (float, type(None)),
}

_DISK = {
    sqlite3.SQLITE_FULL: "the disk is full: make room, and run the command again.",
    sqlite3.SQLITE_IOERR: "the disk reports an error or is full: check it, and run the command again.",
    sqlite3.SQLITE_CANTOPEN: "check the permissions of the folder, and that the disk has room.",
    sqlite3.SQLITE_READONLY: "check the permissions, and that the file system may be written to.",
    sqlite3.SQLITE_BUSY: "another process uses it: wait for it to end.",
    sqlite3.SQLITE_PERM: "check the permissions.",
}


class Ledger:
    """The ledger in a file; what :meth:`commit` has written outlives a power cut.

    Args:
        path: of the file, made if it is missing.
        wait: seconds for another process to let go of it.

    Every method raises :class:`SyncError`: the file is damaged (``bad-ledger``), or the disk is at fault
    (``cannot-write-file``). What was not committed is then not there.
    """

    def __init__(self, path: Path, *, wait: float = 5.0) -> None:
        self._path = path
        with self._errors():
            self._base = sqlite3.connect(path, timeout=wait)
            self._base.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._base.close()

    def commit(self) -> None:
        """Make everything since the last commit last."""
        with self._errors():
            self._base.commit()

    def find(self, sha256: str) -> Entry | None:
        """The entry of an update, ``None`` where it was not accepted."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM accepted WHERE sha256 = ?", (sha256,))
        return self._entry(rows[0]) if rows else None

    def holder(self, device: str, sequence: int) -> str | None:
        """The hash that a device has sent under a sequence number, ``None`` where it has sent none."""
        asked = "SELECT sha256 FROM accepted WHERE device = ? AND sequence = ?"
        rows = self._rows(asked, (device, sequence))
        return str(rows[0][0]) if rows else None

    def add(self, entry: Entry) -> None:
        """Note an accepted update."""
        places = ", ".join("?" * len(fields(Entry)))
        self._change(f"INSERT OR REPLACE INTO accepted ({_COLUMNS}) VALUES ({places})", tuple(vars(entry).values()))

    def counting(self, number: int, oldest: int) -> Iterator[Entry]:
        """What counts for a round, in the order of hashes: of what came during it, the newest update of each device.

        It may have started from an earlier round, down to ``oldest``, unless the device has counted for that one.
        """
        came = f"SELECT {_COLUMNS} FROM accepted WHERE round >= :oldest AND round + staleness = :number"
        asked = (
            f"WITH came AS ({came}) SELECT * FROM came AS a "
            "WHERE NOT EXISTS (SELECT 1 FROM came AS b WHERE b.device = a.device AND b.sequence > a.sequence) "
            "AND NOT EXISTS (SELECT 1 FROM accepted AS b "
            "WHERE b.device = a.device AND b.round = a.round AND b.round + b.staleness < :number) ORDER BY sha256"
        )
        return (self._entry(row) for row in self._rows(asked, {"number": number, "oldest": oldest}))

    def counts(self) -> dict[int, tuple[int, int]]:
        """For each round, how many updates were accepted, and of how many devices."""
        asked = "SELECT round, COUNT(*), COUNT(DISTINCT device) FROM accepted GROUP BY round ORDER BY round"
        return {number: (updates, devices) for number, updates, devices in self._rows(asked)}

    def last(self, device: str) -> tuple[int, int, int] | None:
        """Of a device: updates accepted, the newest round, when the last one was; ``None`` where there is none."""
        asked = "SELECT COUNT(*), MAX(round), MAX(accepted) FROM accepted WHERE device = ?"
        ((count, number, at),) = self._rows(asked, (device,))
        return (count, number, at) if count else None

    def block(self, device: str, reason: str) -> None:
        """Take nothing of a device any more."""
        self._change("INSERT OR IGNORE INTO blocked VALUES (?, ?)", (device, reason))

    def unblock(self, device: str) -> None:
        """Take updates of a device again."""
        self._change("DELETE FROM blocked WHERE device = ?", (device,))

    def blocked(self) -> dict[str, str]:
        """The devices nothing is taken of, and why."""
        return dict(self._rows("SELECT device, reason FROM blocked ORDER BY device"))

    def refuse(self, key: str, code: str, reason: str, source: str, at: int) -> bool:
        """Note a refusal; whether it is a new one."""
        row = (key, code, reason, source, at)
        return self._change("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", row) > 0

    def was_refused(self, source: str) -> bool:
        """Whether a file of this address was refused before."""
        return bool(self._rows("SELECT 1 FROM refused WHERE source = ? LIMIT 1", (source,)))

    def refusals(self) -> dict[str, int]:
        """How many different files were refused, by code."""
        return dict(self._rows("SELECT code, COUNT(*) FROM refused GROUP BY code ORDER BY code"))

    def _entry(self, row: tuple[Any, ...]) -> Entry:
        """The entry of a row; SQLite lets a damaged file hold anything in any column."""
        for column, value in zip(fields(Entry), row, strict=True):
            if not isinstance(value, _KINDS[str(column.type)]):
                raise SyncError(
                    "bad-ledger",
                    f"The ledger {self._path} is damaged.",
                    context=f"{column.name} is {quoted(value)}",
                    hint=_RESTORE,
                )
        return Entry(*row)

    def _rows(self, asked: str, values: _Values = ()) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._base.execute(asked, values).fetchall()

    def _change(self, statement: str, values: _Values = ()) -> int:
        """The number of rows that were changed."""
        with self._errors():
            return self._base.execute(statement, values).rowcount

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as one that says whether the disk or the file is at fault."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as failure:  # the latter of what a damaged file holds
            raise self._told(failure) from failure

    def _told(self, failure: Exception) -> SyncError:
        code = getattr(failure, "sqlite_errorcode", 0) & 0xFF  # without what extends it
        context = f"{failure} ({getattr(failure, 'sqlite_errorname', 'unknown')})"
        hint = _DISK.get(code)
        if hint is not None:
            return SyncError("cannot-write-file", f"Cannot use the ledger {self._path}.", context=context, hint=hint)
        return SyncError(
            "bad-ledger",
            f"Cannot use the ledger {self._path}.",
            context=context,
            hint=_RESTORE,
        )
