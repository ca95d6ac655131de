"""The folder of a Flower server: a folder per round, closed by its report, so that a rerun goes on behind the last."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepeft.aggregation.errors import AggregationError
from edgepeft.aggregation.report import FORMAT, Refused, write_report
from edgepeft_runtime.errors import EdgepeftError
from edgepeft_runtime.files.durable import make_folder
from edgepeft_runtime.files.lock import lock_file
from edgepeft_runtime.files.tensorfile import Array, write_tensors

START, UPDATES, ADAPTER, REPORT = "start.safetensors", "updates", "adapter.safetensors", "adapter.json"
_NAME = re.compile(r"r(\d{6})")


class Rounds:
    """Rounds in a folder.

    ``r000001/start.safetensors`` is what devices started from, ``updates/<node>.safetensors`` what they sent,
    ``adapter.safetensors`` what came of it (there is none if the round kept its adapter) and ``adapter.json`` the
    report. It is written last: a round without it never happened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def last(self) -> int:
        """The number of the last round that was closed; 0 before the first."""
        found = (_NAME.fullmatch(report.parent.name) for report in self.path.glob(f"r*/{REPORT}"))
        return max((int(name[1]) for name in found if name), default=0)

    def adapter(self) -> Path | None:
        """The newest adapter that a closed round came to; ``None``: the bundle's own still stands."""
        found = (self.folder(number) / ADAPTER for number in range(self.last, 0, -1))
        return next((path for path in found if path.is_file() and path.with_suffix(".json").is_file()), None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other servers away from the folder.

        Raises:
            AggregationError: another one is at it (``rounds-in-use``), or the folder cannot be made.
        """
        try:
            make_folder(self.path)
            handle = lock_file(self.path / "lock")
        except BlockingIOError:
            raise AggregationError(
                "rounds-in-use",
                f"Another server is adding rounds to {self.path}.",
                context=None,
                hint="wait for its end, or choose another folder.",
            ) from None
        except OSError as failure:
            raise self._unwritable(failure) from failure
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)

    def folder(self, number: int) -> Path:
        """Where a round lies."""
        return self.path / f"r{number:06}"

    def open(self, number: int, start: Mapping[str, Array]) -> Path:
        """Begin a round in a fresh folder; what a server that was killed has left of it goes.

        Raises:
            AggregationError: nothing can be written there.
        """
        folder = self.folder(number)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            make_folder(folder / UPDATES)
        except OSError as failure:
            raise self._unwritable(failure) from failure
        write_tensors(folder / START, start, error=AggregationError)
        return folder

    def _unwritable(self, failure: OSError) -> AggregationError:
        return AggregationError(
            "cannot-write-file",
            f"The rounds cannot be kept in {self.path}.",
            context=str(failure),
            hint="choose a folder that may be written to.",
        )


def write_kept(folder: Path, why: EdgepeftError, refused: Iterable[Refused], more: Mapping[str, Any]) -> None:
    """Close a round that has come to no adapter: it keeps the one it started from."""
    text = why.message if why.context is None else f"{why.message}\n{why.context}"
    kept = {"kept": why.reference, "reason": text, "refused": [asdict(found) for found in refused]}
    report = {"format": FORMAT, **kept, **more}
    write_report(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
