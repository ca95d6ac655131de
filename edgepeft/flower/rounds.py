"""The folder of a Flower server: a folder per round, closed by its report, so that a rerun resumes after the last."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from edgepeft.aggregation.report import FORMAT, write_report
from edgepeft.intake.refusal import Refusal
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.durable import make_folder, writing
from edgepeft_runtime.files.lock import locked_folder
from edgepeft_runtime.files.tensorfile import Array, write_tensors

START, UPDATES, ADAPTER, REPORT = "start.safetensors", "updates", "adapter.safetensors", "adapter.json"
_NAME = re.compile(r"r(\d{6})")


class Rounds:
    """Rounds in a folder.

    ``r000001/start.safetensors`` is the adapter that devices started from, ``updates/<node>.safetensors`` are their
    updates, ``adapter.safetensors`` is the result (missing if the round kept its adapter) and ``adapter.json`` the
    report. The report is written last: a round without it does not count.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def last(self) -> int:
        """The number of the last round that was closed; 0 before the first."""
        names = (_NAME.fullmatch(report.parent.name) for report in self.path.glob(f"r*/{REPORT}"))
        return max((int(name[1]) for name in names if name), default=0)

    def adapter(self) -> Path | None:
        """Return the newest adapter of a closed round; ``None`` if it is still the bundle's own."""
        paths = (self.folder(number) / ADAPTER for number in range(self.last, 0, -1))
        return next((path for path in paths if path.is_file() and path.with_suffix(".json").is_file()), None)

    def locked(self) -> AbstractContextManager[None]:
        """Lock the folder against other servers.

        Raises:
            AggregationError: Another one uses it (``path-in-use``), or it cannot be used (``cannot-write-file``).
        """
        return locked_folder(self.path, "lock")

    def folder(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.path / f"r{number:06}"

    def open(self, number: int, start: Mapping[str, Array]) -> Path:
        """Start a round in an empty folder, and remove the remains of an interrupted one.

        Raises:
            AggregationError: The folder cannot be written.
        """
        folder = self.folder(number)
        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder / UPDATES)
        write_tensors(folder / START, start)
        return folder


def write_kept(folder: Path, cause: EdgepeftError, refused: Iterable[Refusal], more: Mapping[str, object]) -> None:
    """Close a round without a result, which keeps the adapter that it started from."""
    reason = cause.message if cause.context is None else f"{cause.message}\n{cause.context}"
    kept = {"kept": cause.code, "reason": reason, "refused": [refusal.to_dict() for refusal in refused]}
    report = {"format": FORMAT, **kept, **more}
    write_report(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
