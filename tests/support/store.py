"""Files made once per run and shared by its processes, by a digest of their inputs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class Store:
    """A folder of files by key. Who finds none makes it, and others who want it meanwhile wait for it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def get(self, key: str, make: Callable[[Path], None]) -> Path:
        """The file of a key, made by ``make`` where it is not there; nobody writes to it afterwards.

        Where ``make`` raises, nothing is kept.
        """
        path = self._folder / key
        if path.exists():
            return path
        with FileLock(self._folder / f"{key}.lock"):
            if not path.exists():
                self._fill(path, make)
        return path

    def _fill(self, path: Path, make: Callable[[Path], None]) -> None:
        number, name = tempfile.mkstemp(dir=self._folder)
        os.close(number)
        try:
            make(Path(name))
            Path(name).chmod(0o444)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
