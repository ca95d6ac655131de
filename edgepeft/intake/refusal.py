"""The record of an update that was refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgepeft_runtime.errors import EdgepeftError, FileError, FleetError, RemoteError, TensorError, UpdateError
from edgepeft_runtime.shown import printable

REFUSALS = (FleetError, UpdateError, RemoteError, FileError, TensorError)
"""Families of what can be wrong with an update."""


@dataclass(frozen=True)
class Refusal:
    """An update that was refused.

    Attributes:
        source: Where it came from: a path, a file of a remote, a node.
        code: The code of the first check that it failed.
        reason: What is wrong, in one printable line.
        kept: Its folder in the quarantine, ``None`` if it is not kept.
    """

    source: str
    code: str
    reason: str
    kept: Path | None = None

    @classmethod
    def of(cls, source: object, error: EdgepeftError) -> Refusal:
        """Return the record of an error; whatever a stranger chose is escaped."""
        text = error.message if error.context is None else f"{error.message} {error.context}"
        return cls(printable(str(source), keep=""), error.code, printable(text.replace("\n", "; "), keep=""))

    def __str__(self) -> str:
        return f"{self.source} ({self.code}): {self.reason}"

    def to_dict(self) -> dict[str, str]:
        """Return the record as JSON values, without the place where it is kept."""
        return {"source": self.source, "code": self.code, "reason": self.reason}
