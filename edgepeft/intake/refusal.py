"""The record of an update that was refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.errors import EdgepeftError, FileError, FleetError, RemoteError, TensorError, UpdateError
from edgepeft_runtime.shown import printable

REFUSALS = (FleetError, UpdateError, RemoteError, FileError, TensorError)
"""Families of errors for which an update is refused."""


@dataclass(frozen=True)
class Refusal:
    """An update that was refused.

    Attributes:
        source: Its origin: a path, a file of a remote, or a node.
        code: The code of the first check that it failed.
        reason: The reason, as one printable line.
        kept: Its folder in the quarantine; ``None`` if the update was not kept.
    """

    source: str
    code: str
    reason: str
    kept: Path | None = None

    @classmethod
    def of(cls, source: object, error: EdgepeftError) -> Refusal:
        """Return the record of an error; text from untrusted sources is escaped."""
        text = error.message if error.context is None else f"{error.message} {error.context}"
        return cls(printable(str(source), keep=""), error.code, printable(text.replace("\n", "; "), keep=""))

    def __str__(self) -> str:
        return f"{self.source} ({self.code}): {self.reason}"

    def to_dict(self) -> dict[str, str]:
        """Return the record as JSON values, without the folder in the quarantine."""
        return {"source": self.source, "code": self.code, "reason": self.reason}
