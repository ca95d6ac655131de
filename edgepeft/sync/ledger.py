"""The ledger of accepted updates, with their device and time. An update in it is never accepted again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgepeft.sync.errors import BadLedger
from edgepeft_runtime.errors import CannotWriteFile
from edgepeft_runtime.shown import quoted


@dataclass(frozen=True)
class Entry:
    """An accepted update.

    Args:
        sha256: Hash of its file.
        round: The round that it started from.
        device: The device that sent it.
        sequence: The device's count; no two updates of a device have the same.
        size: Bytes of the file.
        norm: L2 norm of the change, over all floats.
        scale: Factor of the change in a sum, below 1 where the norm was clipped.
        staleness: How many rounds had been published since its own when it was accepted.
        num_examples: Examples trained on, as reported by the device. Untrusted.
        steps: Optimizer steps, as reported by the device; likewise the losses.
        loss_before: Before training; ``None``: unknown.
        loss_after: After training; ``None``: unknown.
        accepted: Time of acceptance, in seconds since 1970.
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
PRAGMA synchronous = EXTRA; -- a commit survives a power cut: the folder is flushed after the journal is removed
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


_Values = tuple[object, ...] | dict[str, object]
_Row = tuple[Any, ...]  # a file of SQLite may contain any value in any column

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
    """The ledger in a file. Whatever ``commit`` has written survives a power cut.

    Args:
        path: Path of the file, which is created if it is missing.
        wait: Seconds to wait for another process to release it.

    Every method raises ``SyncError`` if the file is damaged (``bad-ledger``) or the disk is at fault
    (``cannot-write-file``). Uncommitted changes are then lost.
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
        """Write everything since the last commit."""
        with self._errors():
            self._base.commit()

    def find(self, sha256: str) -> Entry | None:
        """Return the entry of an update, ``None`` if it was not accepted."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM accepted WHERE sha256 = ?", (sha256,))
        return self._entry(rows[0]) if rows else None

    def signed(self, device: str, sequence: int) -> str | None:
        """Return the hash that a device has signed under a sequence number, ``None`` if there is none."""
        query = "SELECT sha256 FROM accepted WHERE device = ? AND sequence = ?"
        rows = self._rows(query, (device, sequence))
        return str(rows[0][0]) if rows else None

    def add(self, entry: Entry) -> None:
        """Note an accepted update."""
        marks = ", ".join("?" * len(fields(Entry)))
        self._change(f"INSERT OR REPLACE INTO accepted ({_COLUMNS}) VALUES ({marks})", tuple(vars(entry).values()))

    def counting(self, round_: int, oldest: int) -> Iterator[Entry]:
        """Yield the updates that count for a round, in the order of hashes: the newest that each device sent during it.

        An update may have started from an earlier round, down to ``oldest``, unless the device counted for that round.
        """
        came = f"SELECT {_COLUMNS} FROM accepted WHERE round >= :oldest AND round + staleness = :round"
        query = (
            f"WITH came AS ({came}) SELECT * FROM came AS a "
            "WHERE NOT EXISTS (SELECT 1 FROM came AS b WHERE b.device = a.device AND b.sequence > a.sequence) "
            "AND NOT EXISTS (SELECT 1 FROM accepted AS b "
            "WHERE b.device = a.device AND b.round = a.round AND b.round + b.staleness < :round) ORDER BY sha256"
        )
        return (self._entry(row) for row in self._rows(query, {"round": round_, "oldest": oldest}))

    def counts(self) -> dict[int, tuple[int, int]]:
        """Return the number of accepted updates and of their devices for each round."""
        query = "SELECT round, COUNT(*), COUNT(DISTINCT device) FROM accepted GROUP BY round ORDER BY round"
        return {round_: (updates, devices) for round_, updates, devices in self._rows(query)}

    def last(self, device: str) -> tuple[int, int, int] | None:
        """Return a device's number of accepted updates, newest round and latest time; ``None`` if it has none."""
        query = "SELECT COUNT(*), MAX(round), MAX(accepted) FROM accepted WHERE device = ?"
        ((count, newest, at),) = self._rows(query, (device,))
        return (count, newest, at) if count else None

    def block(self, device: str, reason: str) -> None:
        """Stop accepting updates of a device."""
        self._change("INSERT OR IGNORE INTO blocked VALUES (?, ?)", (device, reason))

    def unblock(self, device: str) -> None:
        """Accept updates of a device again."""
        self._change("DELETE FROM blocked WHERE device = ?", (device,))

    def blocked(self) -> dict[str, str]:
        """Return the blocked devices, and why each is blocked."""
        return dict(self._rows("SELECT device, reason FROM blocked ORDER BY device"))

    def refuse(self, key: str, code: str, reason: str, source: str, at: int) -> bool:
        """Note a refusal; return whether it is a new one."""
        row = (key, code, reason, source, at)
        return self._change("INSERT OR IGNORE INTO refused VALUES (?, ?, ?, ?, ?)", row) > 0

    def was_refused(self, source: str) -> bool:
        """Return whether a file of this address was refused before."""
        return bool(self._rows("SELECT 1 FROM refused WHERE source = ? LIMIT 1", (source,)))

    def refusals(self) -> dict[str, int]:
        """Return how many different files were refused, by code."""
        return dict(self._rows("SELECT code, COUNT(*) FROM refused GROUP BY code ORDER BY code"))

    def _entry(self, row: _Row) -> Entry:
        """Check the types of a row, and return its entry."""
        for column, value in zip(fields(Entry), row, strict=True):
            if not isinstance(value, _KINDS[str(column.type)]):
                raise BadLedger(
                    f"The ledger {self._path} is damaged.",
                    context=f"{column.name} is {quoted(value)}",
                    hint=_RESTORE,
                )
        return Entry(*row)

    def _rows(self, query: str, values: _Values = ()) -> list[_Row]:
        with self._errors():
            return self._base.execute(query, values).fetchall()

    def _change(self, statement: str, values: _Values = ()) -> int:
        """Execute a statement; return the number of rows that were changed."""
        with self._errors():
            return self._base.execute(statement, values).rowcount

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of SQLite into one that says whether the disk or the file is at fault."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, OverflowError) as failure:  # of values in a damaged file
            raise self._error(failure) from failure

    def _error(self, failure: Exception) -> BadLedger | CannotWriteFile:
        code = getattr(failure, "sqlite_errorcode", 0) & 0xFF  # the primary code, without its extension
        context = f"{failure} ({getattr(failure, 'sqlite_errorname', 'unknown')})"
        hint = _DISK.get(code)
        if hint is not None:
            return CannotWriteFile(f"Cannot use the ledger {self._path}.", context=context, hint=hint)
        return BadLedger(
            f"Cannot use the ledger {self._path}.",
            context=context,
            hint=_RESTORE,
        )
